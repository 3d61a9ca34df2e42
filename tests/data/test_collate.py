"""Batches: tokens, labels, padding and document ids of every layout."""

from __future__ import annotations

import numpy as np
import pytest

from packmamba.data.collate import collate

FIRST, SECOND, ONE = np.array([10, 11, 12]), np.array([20, 21], dtype=np.uint16), np.array([30])


def test_labels_are_the_next_token_of_the_same_piece():
    batch = collate([FIRST, SECOND, ONE], np.array([7, 3, 9]), step_targets=42)
    assert batch.input_ids.tolist() == [10, 11, 12, 20, 21, 30]
    assert batch.labels.tolist() == [11, 12, -100, 21, -100, -100]
    assert batch.packing.host_lengths == [3, 2, 1]
    assert batch.doc_ids is not None
    assert batch.doc_ids.tolist() == [7, 3, 9]
    assert (batch.num_targets, batch.num_padding, batch.step_targets) == (3, 0, 42)


def test_rows_are_filled_inside_their_own_sequence():
    batch = collate([FIRST, SECOND], np.array([0, 1]), row_length=4, pad_id=5)
    assert batch.input_ids.tolist() == [10, 11, 12, 5, 20, 21, 5, 5]
    assert batch.labels.tolist() == [11, 12, -100, -100, 21, -100, -100, -100]
    assert batch.packing.host_lengths == [4, 4]
    assert (batch.num_targets, batch.num_padding, batch.num_tokens) == (3, 3, 5)


def test_a_tail_up_to_the_capacity_is_one_sequence_without_targets():
    batch = collate([FIRST, SECOND], np.array([4, 6]), pad_to=9)
    assert batch.packing.host_lengths == [3, 2, 4]
    assert batch.labels.tolist() == [11, 12, -100, 21, -100] + [-100] * 4
    assert batch.doc_ids is not None
    assert batch.doc_ids.tolist() == [4, 6, -1]
    assert (batch.num_targets, batch.num_padding) == (3, 4)


def test_a_pack_that_is_full_already_gets_no_tail():
    assert collate([FIRST, SECOND], np.array([0, 1]), pad_to=5).packing.host_lengths == [3, 2]


@pytest.mark.parametrize(("pad_to", "size"), [(None, 1), (6, 6)])
def test_a_batch_without_a_document_is_one_padding_sequence(pad_to, size):
    batch = collate([], np.empty(0, np.int64), pad_to=pad_to, step_targets=8)
    assert batch.packing.host_lengths == [size]
    assert batch.labels.tolist() == [-100] * size
    assert batch.doc_ids is not None
    assert batch.doc_ids.tolist() == [-1]
    assert (batch.num_targets, batch.num_tokens, batch.num_padding, batch.step_targets) == (0, 0, size, 8)


def test_num_targets_is_the_number_of_labels_in_every_layout():
    for options in ({}, {"row_length": 5}, {"pad_to": 20}, {"row_length": 4, "pad_to": 16}):
        batch = collate([FIRST, SECOND, ONE], np.arange(3), **options)
        assert batch.num_targets == int((batch.labels != -100).sum())
        assert batch.num_tokens == 6


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a piece of 3 tokens does not fit in rows of 2"):
        collate([FIRST], np.array([0]), row_length=2)
    with pytest.raises(ValueError, match="5 tokens do not fit in pad_to = 4"):
        collate([FIRST, SECOND], np.array([0, 1]), pad_to=4)
