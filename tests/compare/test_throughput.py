"""The comparison of modes: same documents, same loss, real tokens only, and no comparison where losses differ."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from packmamba.compare import modes
from packmamba.compare.plots import plot_throughput
from packmamba.compare.throughput import MODES, Comparison
from packmamba.config import ModelConfig
from packmamba.plots import plot_loss, read_metric

CONFIG = ModelConfig(layer_pattern="1-", d_model=16, vocab_size=32)
LENGTHS = (5, 40, 1, 12, 64)


def documents() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 32, length) for length in LENGTHS]


def test_every_mode_trains_on_the_same_tokens_and_counts_only_real_ones() -> None:
    passes: list[str] = []
    results = Comparison(CONFIG, documents(), 64).run(2, passes.append)
    assert [result.mode for result in results] == list(MODES)
    for result in results:
        assert result.num_tokens == sum(LENGTHS)
        assert result.num_documents == len(LENGTHS)
        assert len(result.seconds) == 2
        assert result.slowest <= result.tokens_per_second <= result.fastest
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)
    packed, padded, single = results
    assert packed.padding_fraction == single.padding_fraction == 0
    assert padded.padding_fraction > 0
    assert packed.num_steps < padded.num_steps <= single.num_steps == 5
    assert passes == [*MODES] * 3


def test_modes_that_do_not_compute_the_same_loss_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky_collate(pieces, doc_ids, *, row_length=None):
        return modes.PackedBatch.from_documents([np.concatenate(pieces)])

    monkeypatch.setattr(modes, "collate", leaky_collate)
    with pytest.raises(RuntimeError, match=r"mode 'single' has loss .* not compute the same thing"):
        Comparison(CONFIG, documents(), 64, modes=["packed", "single"]).run(1)


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown mode 'sorted'; available: packed, padded, padded_sorted, single"):
        Comparison(CONFIG, documents(), 64, modes=["sorted"])


@pytest.mark.slow
def test_pictures_are_drawn_from_the_log_and_the_results(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["step", "train/loss", "val/loss"], [0, 5.5, ""], [1, 5.0, ""], [1, "", 5.1], [2, 4.5, ""]])
    assert read_metric(log, "train/loss") == ([0, 1, 2], [5.5, 5.0, 4.5])
    assert read_metric(log, "val/loss") == ([1], [5.1])
    with pytest.raises(ValueError, match="no column 'loss'; it has: step, train/loss, val/loss"):
        read_metric(log, "loss")
    plot_loss(log, tmp_path / "loss.png", title="loss")
    plot_throughput(Comparison(CONFIG, documents(), 64).run(1), tmp_path / "bars.png", title="bars")
    for name in ("loss", "bars"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.svg").exists()
