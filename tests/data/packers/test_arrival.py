"""Packing a stream is packing the whole, pack after pack, with bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.packers import STREAMING_STRATEGIES, pack, stream_packs


@pytest.mark.parametrize("strategy", STREAMING_STRATEGIES)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    capacity=st.integers(1, 70),
    buffer=st.integers(1, 20),
)
def test_a_stream_gives_the_packs_of_the_whole(strategy, lengths, capacity, buffer):
    streamed = list(stream_packs(iter(lengths), capacity, strategy, buffer=buffer))
    whole = pack(lengths, capacity, strategy, buffer=buffer)
    assert len(streamed) == len(whole)
    for ours, theirs in zip(streamed, whole, strict=True):
        assert all(map(np.array_equal, ours, theirs))
        assert ours.doc.dtype == np.int64


@pytest.mark.parametrize("length", [2, 10])
@pytest.mark.parametrize(("strategy", "ahead"), [("sequential", 1), ("local_greedy", 5), ("wrapped", 0)])
def test_a_stream_is_read_no_further_than_a_pack_and_the_buffer(strategy, ahead, length):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield length

    packs = stream_packs(endless(), 10, strategy, buffer=5)
    for number in range(1, 100):
        assert next(packs).doc.size == 10 // length
        assert read <= 10 // length * number + ahead


def test_a_stream_without_documents_has_no_packs():
    assert list(stream_packs([], 8)) == []


def test_strategies_that_need_all_lengths_are_refused():
    with pytest.raises(
        ValueError, match=r"'best_fit_decreasing' needs to know all lengths; .* sequential, local_greedy"
    ):
        stream_packs([1], 8, "best_fit_decreasing")
    with pytest.raises(ValueError, match="unknown strategy 'best'; available: sequential, local_greedy, wrapped"):
        stream_packs([1], 8, "best")


@pytest.mark.parametrize(
    ("length", "error", "message"),
    [
        (0, ValueError, "document 2 has length 0"),
        (1.5, TypeError, "document 2 has length 1.5"),
        (9, ValueError, "document 2 has 9 tokens, more than the capacity of 8"),
    ],
)
def test_a_bad_length_is_refused_when_it_arrives(length, error, message):
    packs = stream_packs([8, 8, length], 8, "sequential", long_documents="error")
    assert next(packs).doc.tolist() == [0]
    with pytest.raises(error, match=message):
        list(packs)
