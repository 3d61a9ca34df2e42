"""Two processes (gloo) train as one does on the same documents a step, however uneven the documents are."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

import torch

from tests.support import assert_close
from tests.training.rank_runs import train, train_poisoned


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.slow
def test_two_ranks_train_as_one_does_with_the_same_documents_a_step(tmp_path: Path, streaming: bool) -> None:
    """4 packs a step: 1 rank x 4 accumulated, 2 x 2 and 4 x 1. The last step of an epoch has none for some ranks."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefgh", k=rng.choice([1, 3, 20, 63, 200]))) for _ in range(40)]
    texts.append("x" * 63)  # one more pack, which the last step has for one rank only
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (one,) = train(tmp_path / "one", [str(file)], streaming, 1, 4)
    for ranks in (2, 4):
        several = train(tmp_path / f"{ranks}", [str(file)], streaming, ranks, 4 // ranks)
        assert len({len(rank["documents"]) for rank in several}) == 1, "ranks take different numbers of micro-steps"
        assert any(docs == [-1] for rank in several for docs in rank["documents"]), "each rank has a pack everywhere"
        for rank in several:
            assert len(rank["losses"]) == len(one["losses"])
            assert_close("losses", torch.tensor(one["losses"]), torch.tensor(rank["losses"]), 1e-6)
            for step, (alone, shared) in enumerate(zip(one["gradients"], rank["gradients"], strict=True)):
                assert_close(f"gradients of step {step}", alone, shared, 1e-5)
            for name, weight in one["weights"].items():
                assert_close(name, weight, rank["weights"][name], 1e-5)
    assert len(one["losses"]) > 15
    assert one["losses"][-1] < one["losses"][0]


@pytest.mark.slow
def test_a_nan_on_one_rank_stops_all_or_is_left_out_by_all(tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": f"document {i} " * (1 + i % 5)}) + "\n" for i in range(60)))
    for message in train_poisoned(tmp_path / "stop", [str(file)], "stop"):
        assert message.startswith("optimiser step 3: rank 1: the loss is nan in batch 3 of the epoch")
        assert "rank 0" not in message
    one, two = train_poisoned(tmp_path / "skip", [str(file)], "skip")
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    assert one["gradients"][3].isnan().all()
    assert one["gradients"][4].isfinite().all()
    for name, weight in one["weights"].items():
        assert weight.isfinite().all(), name
        assert torch.equal(weight, two["weights"][name]), name
