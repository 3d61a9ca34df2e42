"""Runs that are killed again and again train on the same documents as one that is not, and end with its weights."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

import torch

from tests.data.resume.kill import MAX_STEPS, Variant, history, kill_soon, start
from tests.support import assert_identical

pytestmark = pytest.mark.slow

KILLS = 20
VARIANTS = [Variant(*choice) for choice in itertools.product((False, True), (0, 2), (1, 2))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[str]:
    """Sixty documents in three files."""
    rng = random.Random(0)
    for number in range(3):
        texts = ("".join(rng.choices("abcdefgh", k=rng.randint(1, 60))) for _ in range(20))
        (folder / f"part-{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [str(folder / f"part-{number}.jsonl") for number in range(3)]


@pytest.fixture(scope="module")
def uninterrupted(folder, files):
    """A function that trains a variant without killing it, once for any number of workers."""
    known = {}

    def train(variant: Variant) -> Path:
        key = variant.streaming, variant.ranks
        if key not in known:
            run = folder / f"uninterrupted-{variant}"
            run.mkdir()
            process = start(run, files, variant)
            process.join()
            assert process.exitcode == 0
            known[key] = run
        return known[key]

    return train


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_killed_runs_train_on_what_the_uninterrupted_one_does(variant, folder, files, uninterrupted):
    expected = uninterrupted(variant)
    run = folder / f"killed-{variant}"
    run.mkdir()
    rng = random.Random(str(variant))
    killed = 0
    while killed < KILLS:
        killed += kill_soon(start(run, files, variant), run, rng)
        if (run / "weights.pt").exists():  # finished before it could be killed: the rest begins anew
            (run / "weights.pt").unlink()
            (run / "last.ckpt").unlink()
    process = start(run, files, variant)
    process.join()
    assert process.exitcode == 0
    there, here = history(expected, variant.ranks), history(run, variant.ranks)
    assert len({step for _, step, _ in there}) == MAX_STEPS
    assert here == there
    weights = [torch.load(path / "weights.pt", weights_only=True) for path in (expected, run)]
    for name, tensor in weights[0].items():
        assert_identical(name, tensor, weights[1][name])
    assert len({tuple(ids) for ids, _ in itertools.islice(there.values(), 20)}) > 10, "hardly anything was trained on"
