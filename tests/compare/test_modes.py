"""Ways to train: every one has the same documents, cut by nobody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packmamba.compare.modes import KINDS, Mode, cut, make_batches, parse_mode

NAMES = ("packed", "packed:sequential", "padded", "padded:3", "padded_sorted", "padded_sorted:3", "single")


def documents(lengths):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 50, length) for length in lengths]


@pytest.mark.parametrize("name", [*NAMES, "mamba-ssm/padded:8", "mamba-ssm/dense:64", "mamba-ssm/packed"])
def test_a_mode_is_called_what_it_was_called(name):
    assert str(parse_mode(name)) == name


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=30), name=st.sampled_from(NAMES))
def test_every_document_is_in_one_batch_with_its_own_targets(lengths, name):
    texts = documents(lengths)
    found = []
    for batch in make_batches(parse_mode(name), texts, 64):
        real = batch.labels != batch.IGNORE_INDEX
        for ids, labels, targets in zip(*map(batch.packing.unpack, (batch.input_ids, batch.labels, real)), strict=True):
            count = int(targets.sum())
            assert bool(targets[:count].all())
            assert (labels[:count] == ids[1 : count + 1]).all()
            found.append(tuple(ids[: count + 1].tolist()))
        assert batch.num_targets == int(real.sum())
    assert sorted(found) == sorted(tuple(text.tolist()) for text in texts)


def test_padded_batches_have_the_rows_they_are_asked_for():
    batches = make_batches(parse_mode("padded:3"), documents([5, 1, 2, 9, 4]), 10)
    assert [batch.packing.host_lengths for batch in batches] == [[5, 5, 5], [9, 9]]


def test_sorting_puts_documents_of_like_length_together():
    batches = make_batches(parse_mode("padded_sorted:2"), documents([5, 1, 6, 2]), 10)
    assert [batch.packing.host_lengths for batch in batches] == [[2, 2], [6, 6]]


def test_dense_rows_hold_all_tokens_and_leak_over_boundaries():
    texts = documents([5, 1, 9, 10])
    batches = make_batches(Mode("dense", size=4, peer="mamba-ssm"), texts, 8)
    assert [batch.packing.host_lengths for batch in batches] == [[4, 4], [4, 4], [4, 4], [1]]
    assert np.concatenate([batch.input_ids for batch in batches]).tolist() == np.concatenate(texts).tolist()
    assert sum(batch.num_targets for batch in batches) == 24


def test_a_document_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="document 1 has 65 tokens, more than the capacity of 64"):
        make_batches(Mode("packed"), documents([3, 65]), 64)
    assert [len(piece) for piece in cut(documents([3, 65, 128]), 64)] == [3, 64, 1, 64, 64]


BAD = {
    "bucketed": "unknown mode 'bucketed'; available: packed, padded, padded_sorted, single",
    "dense:4": "unknown mode 'dense:4'",
    "packed:best": "unknown strategy 'best'; available: best_fit_decreasing",
    "packed:single": "unknown strategy 'single'",
    "single:2": "'single' has no size",
    "padded:0": "at least 1, got '0'",
    "padded:x": "at least 1, got 'x'",
    "mamba-ssm/dense": "needs the tokens of a row, such as dense:4096",
    "fla/padded": "unknown peer 'fla'; available: mamba-ssm",
}


@pytest.mark.parametrize(("name", "message"), BAD.items())
def test_a_mode_that_does_not_exist_is_refused_with_what_does(name, message):
    with pytest.raises(ValueError, match=message):
        parse_mode(name)
    assert all(str(parse_mode(kind)) == kind for kind in KINDS)
