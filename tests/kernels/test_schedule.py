"""The segments of a pack, and their walks: every token exactly once, never across a document."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packmamba_kernels.schedule import CHUNK, SIZES, WALK, build_schedule, build_segments

from tests.kernels.selective_scan.scan_cases import cu_seqlens_of


def assert_covers(segments, cu_seqlens, size):
    bounds = cu_seqlens.long()
    start, length, seq = segments.start.long(), segments.length.long(), segments.seq.long()
    used = int(segments.cu_segments[-1])
    assert (length[:used] >= 1).all()
    assert (length[used:] == 0).all()
    assert length.max() <= size
    # In token order, end to end, with nothing between: every token exactly once.
    assert start[0] == 0
    assert torch.equal(start[1:used], (start + length)[: used - 1])
    assert (start + length)[used - 1] == bounds[-1]
    # Inside one document, and cut each `size` tokens from the document's start.
    assert (start[:used] >= bounds[seq[:used]]).all()
    assert ((start + length)[:used] <= bounds[seq[:used] + 1]).all()
    assert ((start[:used] - bounds[seq[:used]]) % size == 0).all()
    followed = seq[:used].diff() == 0
    assert (length[: used - 1][followed] == size).all()
    # The segments of document s are cu_segments[s] to cu_segments[s + 1].
    owner = torch.arange(bounds.shape[0] - 1).repeat_interleave(segments.cu_segments.diff())
    assert torch.equal(owner, seq[:used])
    # Each once in the order: longest first, those that another one follows before the rest.
    order = segments.order.long()
    assert torch.equal(order.sort().values, torch.arange(segments.num_segments))
    assert (length[order].diff() <= 0).all()
    is_followed = torch.zeros(segments.num_segments, dtype=torch.bool)
    is_followed[: used - 1] = followed
    assert bool(is_followed[order][: int(followed.sum())].all())


def assert_walks(segments, cu_seqlens):
    """Walks are runs of segments: all of them, in token order, each where its first token lies in the pack."""
    walks, used = segments.walks.long(), int(segments.cu_segments[-1])
    num_tokens, step = int(cu_seqlens[-1]), min(segments.size, WALK)
    assert walks.shape[0] - 1 == segments.walk_order.shape[0] == -(-num_tokens // step)
    assert (walks[0], walks[-1]) == (0, used)
    owner = torch.arange(walks.shape[0] - 1).repeat_interleave(walks.diff())
    assert torch.equal(owner, segments.start[:used].long() // step)
    # Most tokens first; those without segments last.
    tokens = torch.zeros(walks.shape[0] - 1, dtype=torch.long)
    tokens.index_add_(0, owner, segments.length[:used].long())
    order = segments.walk_order.long()
    assert torch.equal(order.sort().values, torch.arange(order.shape[0]))
    assert (tokens[order].diff() <= 0).all()
    assert tokens.max() < step + segments.size


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=40), size=st.sampled_from([1, 7, CHUNK, 256, 1024]))
def test_every_segment_belongs_to_the_walk_in_whose_stretch_it_starts(lengths, size):
    cu_seqlens = cu_seqlens_of(lengths)
    assert_walks(build_segments(cu_seqlens, size), cu_seqlens)
    assert_walks(build_segments(cu_seqlens, size, sum(lengths)), cu_seqlens)


def test_short_documents_share_walks():
    segments = build_segments(cu_seqlens_of([10] * 1000), 1024)
    assert segments.num_segments == 1000
    assert segments.walk_order.shape[0] == 10_000 // WALK + 1


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=40), size=st.sampled_from([1, 7, CHUNK, 256]))
def test_every_token_belongs_to_one_segment_of_its_document(lengths, size):
    cu_seqlens = cu_seqlens_of(lengths)
    assert_covers(build_segments(cu_seqlens, size), cu_seqlens, size)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=20))
def test_tables_built_without_reading_a_value_hold_the_same_segments(lengths):
    cu_seqlens = cu_seqlens_of(lengths)
    exact, padded = build_schedule(cu_seqlens), build_schedule(cu_seqlens, sum(lengths))
    assert exact.num_tokens == padded.num_tokens == sum(lengths)
    for wanted, level in zip(exact.levels, padded.levels, strict=True):
        assert_covers(level, cu_seqlens, level.size)
        n = wanted.num_segments
        assert level.num_segments == sum(lengths) // level.size + len(lengths) >= n
        for name in ("start", "length", "seq", "order"):
            assert torch.equal(getattr(wanted, name), getattr(level, name)[:n]), name
        for name in ("cu_segments", "walks", "walk_order"):
            assert torch.equal(getattr(wanted, name), getattr(level, name)), name


PACKS = {
    "one-token documents": [1] * 1000,
    "one document of a million tokens": [1_000_000],
    "a hundred thousand documents": (torch.arange(100_000) % 97 + 1).tolist(),
    "exactly a segment, and one more or less": [size + i for size in SIZES for i in (-1, 0, 1)],
}


@pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS)
def test_large_packs_are_cut_in_well_under_a_second(lengths):
    cu_seqlens = cu_seqlens_of(lengths)
    begin = time.process_time()
    schedule = build_schedule(cu_seqlens)
    assert time.process_time() - begin < 2
    for level in schedule.levels:
        assert_covers(level, cu_seqlens, level.size)


def test_tables_are_int32_and_move_together():
    schedule = build_schedule(cu_seqlens_of([70, 1, 64]))
    assert schedule.chunks is schedule.levels[0]
    assert tuple(level.size for level in schedule.levels) == SIZES
    moved = schedule.to("meta")
    for level in moved.levels:
        for name in ("start", "length", "seq", "cu_segments", "order", "walks", "walk_order"):
            assert getattr(level, name).is_meta
            assert getattr(level, name).dtype == torch.int32
    assert moved.num_tokens == 135


@pytest.mark.parametrize("known", [False, True])
def test_tables_lie_in_one_buffer_at_multiples_of_16_bytes(known):
    cu_seqlens = cu_seqlens_of([70, 1, 64, 300])
    schedule = build_schedule(cu_seqlens, 435 if known else None)
    assert schedule.buffer.dtype == torch.int32
    assert torch.equal(schedule.cu_seqlens, cu_seqlens)
    views = [schedule.cu_seqlens]
    for level in schedule.levels:
        views += [level.start, level.length, level.seq, level.cu_segments, level.order, level.walks, level.walk_order]
    end = 0
    for view in views:
        assert view.untyped_storage().data_ptr() == schedule.buffer.untyped_storage().data_ptr()
        assert view.data_ptr() % 16 == 0
        assert view.storage_offset() == -(-end // 4) * 4  # no two overlap, nothing between
        end = view.storage_offset() + view.shape[0]
    assert schedule.buffer.shape[0] == -(-end // 4) * 4


def test_views_are_made_once():
    schedule = build_schedule(cu_seqlens_of([70, 1]))
    assert schedule.chunks is schedule.segments(CHUNK)
    assert schedule.to(schedule.device) is schedule
    with pytest.raises(ValueError, match=r"no segments of 100 tokens, only of \[64, 256, 1024, 4096\]"):
        schedule.segments(100)


@pytest.mark.slow
def test_a_schedule_is_built_under_torch_compile():
    compiled = torch.compile(build_schedule, fullgraph=True, backend="aot_eager")
    for lengths in ([70, 3], [5, 5, 200], [1000]):
        cu_seqlens = cu_seqlens_of(lengths)
        built = compiled(cu_seqlens, sum(lengths))
        assert torch.equal(built.buffer, build_schedule(cu_seqlens, sum(lengths)).buffer)


def test_a_segment_that_crosses_a_document_is_noticed():
    cu_seqlens = cu_seqlens_of([70, 30])
    with pytest.raises(AssertionError):
        assert_covers(build_segments(cu_seqlens_of([100]), CHUNK), cu_seqlens, CHUNK)
