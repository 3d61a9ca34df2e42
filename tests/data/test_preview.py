"""A look at the data before training agrees with what training finds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from packmamba.data import PackedDataModule
from packmamba.data.preview import SAMPLED, look_at
from packmamba.data.sources import Files
from packmamba.errors import UsageError


@pytest.fixture
def many(write_jsonl: Any) -> str:
    return write_jsonl([f"{i} " + "word " * (i % 50) for i in range(1000)])


def module(path: str, cache: Path, **options: Any) -> PackedDataModule:
    return PackedDataModule(source=Files(paths=[path]), cache_dir=str(cache), **({"capacity": 512} | options))


def test_an_estimate_is_near_the_truth_and_says_how_near(many: str, cache: Path) -> None:
    guess = look_at(module(many, cache), world_size=1, accumulation=2)
    assert guess.sampled == SAMPLED
    assert not guess.epoch.is_exact
    assert not (cache / "tokens").exists()

    data = module(many, cache)
    data.setup("fit")
    truth = look_at(module(many, cache), world_size=1, accumulation=2)
    assert truth.epoch.is_exact
    assert truth.epoch.uncertainty == 0
    assert truth.epoch.documents == data.documents("train").rows.size == guess.epoch.documents
    assert truth.epoch.tokens == int(data.documents("train").lengths.sum())
    assert truth.epoch.packs == len(data.packs("train"))
    assert truth.epoch.steps == -(-len(data.packs("train")) // 2)
    assert truth.val_documents == guess.val_documents == data.documents("val").rows.size
    for name in ("tokens", "packs", "steps", "targets", "tokens_per_step"):
        expected, found = getattr(truth.epoch, name), getattr(guess.epoch, name)
        assert abs(found / expected - 1) < 4 * guess.epoch.uncertainty, name


def test_ranks_and_accumulation_share_the_packs(many: str, cache: Path) -> None:
    alone = look_at(module(many, cache), world_size=1, accumulation=1).epoch
    shared = look_at(module(many, cache), world_size=4, accumulation=2).epoch
    assert alone.steps == alone.packs == shared.packs
    assert shared.steps == math.ceil(math.ceil((alone.packs or 0) / 4) / 2)
    assert shared.tokens_per_step == pytest.approx(8 * alone.tokens_per_step)


def test_the_runs_of_a_document_are_its_tokens(many: str, cache: Path) -> None:
    preview = look_at(module(many, cache, capacity=300, pad_to_capacity=True), world_size=1, accumulation=1)
    assert sum(piece.tokens for piece in preview.pieces) + preview.filler == 300
    for piece in preview.pieces:
        assert sum(run.tokens for run in piece.runs) == piece.tokens
        assert piece.targets == piece.tokens - 1
        assert piece.runs[0].text.endswith("<EOS>")
        assert piece.runs[0].text.startswith(f"{piece.row} ")


def test_a_stream_has_no_length(many: str, cache: Path) -> None:
    data = PackedDataModule(
        source=Files(paths=[many], streaming=True), cache_dir=str(cache), capacity=512, val_fraction=0
    )
    preview = look_at(data, world_size=1, accumulation=1)
    assert preview.sampled == SAMPLED
    assert preview.epoch.documents is preview.epoch.packs is preview.epoch.steps is None
    assert preview.epoch.tokens_per_step > 400
    assert {piece.row for piece in preview.pieces} <= set(range(SAMPLED))


def test_documents_without_a_token_are_refused_as_training_does(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("".join(json.dumps({"text": ""}) + "\n" for _ in range(5)))
    with pytest.raises(UsageError):
        look_at(module(str(path), cache), world_size=1, accumulation=1)
