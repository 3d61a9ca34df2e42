"""Pictures: their files, and what would mislead who looks at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.operators.plots import plot_times
from packmamba.compare.plots import against_capacity, bars, breakdown, draw_all
from packmamba.plots import files_of, import_pyplot, picture

pytestmark = pytest.mark.slow


def compared(mode: str = "packed", capacity: int = 1024, seconds: tuple[float, ...] = (1.0, 2.0), **other: Any) -> dict:
    return {
        "model": "hybrid-tiny",
        "layer_pattern": "1*",
        "recompute": "none",
        "lengths": "lognormal",
        "mean_length": 79.0,
        "capacity": capacity,
        "mode": mode,
        "precision": "32-true",
        "status": "ok",
        "padding_fraction": 0.25,
        "num_tokens": 3000,
        "seconds": seconds,
        "tokens_per_second": 2000.0,
        "activation_bytes_per_token": 2048.0,
        **other,
    }


def share(kind: str, seconds: float, **other: Any) -> dict:
    return {
        "model": "hybrid-tiny",
        "layer_pattern": "1*",
        "recompute": "none",
        "tokens": 1000,
        "kind": kind,
        "layers": 1,
        "forward_seconds": seconds,
        "backward_seconds": 2 * seconds,
        **other,
    }


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that have been drawn and closed, which still can be looked at."""
    closed: list[Any] = []
    monkeypatch.setattr(import_pyplot(), "close", closed.append)
    return closed


def test_an_svg_stands_beside_every_png_and_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        file = tmp_path / f"{name}.png"
        with picture(file, size=(4, 3), title="numbers") as (_, ((axes,),)):
            axes.plot([1, 2, 3])
        assert file.read_bytes().startswith(b"\x89PNG")
        written.append(file.with_suffix(".svg").read_bytes())
    assert b"<svg" in written[0]
    assert written[0] == written[1]


def test_a_picture_that_is_named_otherwise_is_one_file(tmp_path: Path) -> None:
    with picture(tmp_path / "a.pdf", size=(4, 3), title="numbers"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.pdf"]
    assert files_of(Path("a.pdf")) == [Path("a.pdf")]


def test_a_long_title_is_wrapped_and_then_shortened(tmp_path: Path, figures: list[Any]) -> None:
    with picture(tmp_path / "a.png", size=(4, 3), title="word " * 50):
        pass
    lines = figures[0].get_suptitle().splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(" …")


def test_the_fastest_pass_lies_inside_the_picture(tmp_path: Path, figures: list[Any]) -> None:
    rows = [compared(capacity=capacity, seconds=(0.5, 1.5, 3.0)) for capacity in (1024, 2048)]
    against_capacity(rows, tmp_path / "capacity.png", "cpu")
    assert figures[0].axes[0].get_ylim()[1] > 3000 / 0.5


def test_what_a_bar_is_called_says_what_each_value_is(tmp_path: Path, figures: list[Any]) -> None:
    rows = [
        compared(capacity=2048),
        compared(recompute="conv", capacity=1024),
        compared("padded_sorted:8"),
        compared("mamba-ssm/dense:4096"),
    ]
    bars(rows, tmp_path / "throughput.png", "cpu")
    labels = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert labels == [
        "packed, recompute none, packs of 2,048 (25% padding)",
        "packed, recompute conv, packs of 1,024 (25% padding)",
        "padded, sorted, 8 rows, recompute none (25% padding)",
        "mamba-ssm: dense, 4096 tokens, recompute none (25% padding)",
    ]


def test_panels_of_the_breakdown_share_one_axis_of_time_for_each_token(tmp_path: Path, figures: list[Any]) -> None:
    shares = [share("mamba1", 1e-3), share("attention", 2e-3), share("mamba1", 8e-3, model="mamba-tiny", tokens=2000)]
    breakdown(shares, tmp_path / "breakdown.png", "cpu")
    first, second = figures[0].axes
    assert first.get_xlim() == second.get_xlim()
    assert max(patch.get_x() + patch.get_width() for patch in second.patches) == pytest.approx(8.0)  # µs a token
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["mamba1", "attention"]


def test_panels_of_the_operators_share_one_legend(tmp_path: Path, figures: list[Any]) -> None:
    rows = [
        {
            "op": op,
            "part": "forward",
            "implementation": name,
            "tokens": 64,
            "channels": 8,
            "states": None,
            "dtype": "bfloat16",
            "distribution": "lognormal",
            "milliseconds": {"median": 1.0},
            "bounds_milliseconds": {"bytes": 0.5},
        }
        for op in ("causal_conv1d", "selective_scan")
        for name in ("packmamba", "naive")
    ]
    plot_times(rows, tmp_path / "kernels.png", "cpu")
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["packmamba", "naive", "bound by bytes"]
    assert not any(axes.get_legend() for axes in figures[0].axes)


def test_every_axis_has_a_label_with_its_unit(tmp_path: Path, figures: list[Any]) -> None:
    rows = [compared(capacity=capacity) for capacity in (1024, 2048)]
    drawn = draw_all(rows, [share("mamba1", 1e-3)], tmp_path, "cpu")
    assert [path.name for path in drawn] == ["throughput.png", "memory.png", "capacity.png", "breakdown.png"]
    labels = [axes.get_xlabel() for figure in figures for axes in figure.axes]
    assert labels == [
        "real tokens per second, whole training steps",
        "activations kept for each real token (KiB)",
        "capacity of a pack (tokens)",
        "time for each token (µs)",
    ]
