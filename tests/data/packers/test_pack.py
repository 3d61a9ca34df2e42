"""Packers: every token placed exactly once, no pack over capacity, deterministic, dense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.packers import STRATEGIES, Packs, pack, refuse_long_documents

ADVERSARIAL = {
    "one": [1],
    "all-ones": [1] * 100,
    "all-equal": [7] * 50,
    "one-giant": [3, 2, 1000, 5],
    "exactly-the-capacity": [16, 16, 16],
    "capacity-plus-one": [17, 17, 17],
    "capacity-minus-one-and-one": [15, 1] * 20,
    "descending": list(range(40, 0, -1)),
    "one-giant-among-ones": [1] * 30 + [500] + [1] * 30,
    "zipf": np.random.default_rng(0).zipf(1.5, 500).clip(max=10_000).tolist(),
}


def assert_places_every_token_once(packs: Packs, lengths: list[int]) -> None:
    """Also: pieces of a document do not overlap and, within a pack, are in the document's order."""
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for doc, start, length in packs:
        assert doc.size >= 1, "a pack is empty"
        furthest: dict[int, int] = {}
        for d, s, n in zip(doc.tolist(), start.tolist(), length.tolist(), strict=True):
            assert n >= 1, "a piece is empty"
            assert s >= 0
            assert s + n <= lengths[d]
            assert s >= furthest.get(d, 0), f"document {d} is reordered"
            furthest[d] = s + n
            seen[d][s : s + n] += 1
    assert all((count == 1).all() for count in seen), "a token is missing or repeated"


def assert_valid(packs: Packs, lengths: list[int], capacity: int) -> None:
    assert_places_every_token_once(packs, lengths)
    assert packs.size.max() <= capacity
    assert packs.num_tokens.sum() == sum(lengths)
    assert (packs.num_tokens <= packs.size).all()
    assert packs.num_targets.sum() == sum(lengths) - packs.pieces.doc.size
    assert packs.num_split == (np.bincount(packs.pieces.doc) > 1).sum()
    assert 0 < packs.efficiency <= 1


def pack_any(lengths, capacity, strategy, **options) -> Packs:
    """`pack`, with random embeddings for the strategy that needs some."""
    if strategy == "threshold_filtering":
        options["embeddings"] = np.random.default_rng(len(lengths)).normal(size=(len(lengths), 4))
    return pack(lengths, capacity, strategy, **options)


def same(a: Packs, b: Packs) -> bool:
    return np.array_equal(a.offsets, b.offsets) and all(map(np.array_equal, a.pieces, b.pieces))


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    capacity=st.integers(1, 70),
    seed=st.none() | st.integers(0, 3),
    buffer=st.integers(1, 20),
)
def test_every_token_is_placed_once_within_capacity(strategy, lengths, capacity, seed, buffer):
    packs = pack_any(lengths, capacity, strategy, seed=seed, buffer=buffer)
    assert_valid(packs, lengths, capacity)
    assert same(packs, pack_any(lengths, capacity, strategy, seed=seed, buffer=buffer)), "not deterministic"


@pytest.mark.parametrize("lengths", ADVERSARIAL.values(), ids=ADVERSARIAL)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_adversarial_lengths_are_packed_correctly(strategy, lengths):
    for seed in (None, 0):
        packs = pack_any(lengths, 16, strategy, seed=seed)
        assert_valid(packs, lengths, 16)
        assert same(packs, pack_any(lengths, 16, strategy, seed=seed)), "not deterministic"


def test_the_check_sees_a_lost_a_repeated_and_a_reordered_token():
    lengths = [5, 20]
    good = pack(lengths, 8, "wrapped")
    for column, change in (("length", -1), ("start", -1)):
        pieces = good.pieces._replace(**{column: getattr(good.pieces, column) + change * (good.pieces.doc == 1)})
        with pytest.raises(AssertionError):
            assert_places_every_token_once(Packs(pieces, good.offsets, 8, "wrapped"), lengths)
    reordered = good.pieces._replace(**{name: getattr(good.pieces, name)[::-1] for name in good.pieces._fields})
    with pytest.raises(AssertionError, match="reordered"):
        assert_places_every_token_once(Packs(reordered, np.array([0, reordered.doc.size]), 99, "wrapped"), lengths)


def naive_decreasing(lengths: list[int], capacity: int, choose) -> list[int]:
    """Loads of the packs, piece by piece, as the textbook says."""
    pieces = [size for n in lengths for size in [capacity] * (n // capacity) + [n % capacity] * (n % capacity > 0)]
    loads: list[int] = []
    for piece in sorted(pieces, reverse=True):
        fitting = [i for i, load in enumerate(loads) if load + piece <= capacity]
        if not fitting:
            loads.append(0)
            fitting = [len(loads) - 1]
        loads[choose(loads, fitting)] += piece
    return loads


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200), capacity=st.integers(1, 64))
def test_first_fit_is_the_textbook_algorithm(lengths, capacity):
    loads = naive_decreasing(lengths, capacity, lambda loads, fitting: fitting[0])
    assert pack(lengths, capacity, "first_fit_decreasing").num_tokens.tolist() == loads


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200), capacity=st.integers(1, 64))
def test_best_fit_is_the_textbook_algorithm(lengths, capacity):
    loads = naive_decreasing(lengths, capacity, lambda loads, fitting: max(fitting, key=loads.__getitem__))
    # Which of several equally full packs is taken does not change how full the packs end up.
    assert sorted(pack(lengths, capacity, "best_fit_decreasing").num_tokens.tolist()) == sorted(loads)


@pytest.mark.parametrize("strategy", ["first_fit_decreasing", "best_fit_decreasing"])
@pytest.mark.slow
def test_many_packs_and_long_documents_are_packed_as_in_the_textbook(strategy):
    """More packs than a block of first fit, capacities beyond a word of best fit's bitmap and beyond 16 bits."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(40_000, 100_000, 1500), rng.integers(1, 60_000, 2000)]).tolist()
    best = strategy == "best_fit_decreasing"
    choose = (lambda loads, f: max(f, key=loads.__getitem__)) if best else (lambda loads, f: f[0])
    packs = pack(lengths, 70_000, strategy)
    assert len(packs) > 1024
    assert sorted(packs.num_tokens.tolist()) == sorted(naive_decreasing(lengths, 70_000, choose))
    assert_valid(packs, lengths, 70_000)


def test_sequential_seals_a_pack_when_the_next_document_does_not_fit():
    packs = pack([3, 4, 2, 8, 1], 8, "sequential")
    assert [pieces.doc.tolist() for pieces in packs] == [[0, 1], [2], [3], [4]]


def test_local_greedy_takes_the_longest_of_its_buffer_and_fills_the_rest():
    packs = pack([3, 5, 2, 4, 8], 8, "local_greedy", buffer=3)
    assert [pieces.doc.tolist() for pieces in packs] == [[1, 0], [4], [3, 2]]


def test_padded_rows_never_exceed_the_capacity_and_are_counted_as_padding():
    packs = pack([4, 2, 3, 1], 8, "padded")
    assert [pieces.doc.tolist() for pieces in packs] == [[0, 1], [2, 3]]
    assert packs.row_lengths is not None
    assert packs.row_lengths.tolist() == [4, 3]
    assert packs.size.tolist() == [8, 6]
    assert packs.padding_fraction == pytest.approx(4 / 14)


def test_single_gives_one_document_a_pack():
    assert [pieces.doc.tolist() for pieces in pack([4, 2, 3], 8, "single")] == [[0], [1], [2]]


def test_wrapped_cuts_where_packs_end_and_shows_it():
    packs = pack([5, 6, 1], 4, "wrapped")
    assert [list(zip(*map(np.ndarray.tolist, pieces), strict=True)) for pieces in packs] == [
        [(0, 0, 4)],
        [(0, 4, 1), (1, 0, 3)],
        [(1, 3, 3), (2, 0, 1)],
    ]
    assert packs.num_split == 2
    assert packs.efficiency == 1.0


def test_documents_longer_than_the_capacity_are_cut_at_the_capacity():
    packs = pack([10, 2], 4, "best_fit_decreasing")
    assert sorted(zip(*map(np.ndarray.tolist, packs.pieces), strict=True)) == [
        (0, 0, 4),
        (0, 4, 4),
        (0, 8, 2),
        (1, 0, 2),
    ]
    assert packs.num_split == 1
    assert len(packs) == 3


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"single"}))
def test_a_seed_changes_the_order_but_not_what_is_packed(strategy):
    lengths = [5] * 30 + [7] * 30
    arrived, shuffled = pack_any(lengths, 17, strategy), pack_any(lengths, 17, strategy, seed=1)
    assert not same(arrived, shuffled)
    assert_valid(shuffled, lengths, 17)


def lognormal(documents: int, mean: float = 650, longest: int = 2048) -> np.ndarray:
    draws = np.random.default_rng(0).lognormal(0, 0.9, documents)
    scale = mean / draws.mean()
    for _ in range(20):  # clipping lowers the mean
        scale *= mean / np.clip(draws * scale, 1, longest).mean()
    return np.clip(draws * scale, 1, longest).astype(np.int64)


def test_best_fit_fills_packs_of_lognormal_documents_to_99_5_percent():
    lengths = lognormal(100_000)
    assert lengths.mean() == pytest.approx(650, rel=0.01)
    efficiency = {s: pack(lengths, 4096, s).efficiency for s in ("sequential", "local_greedy", "best_fit_decreasing")}
    assert efficiency["best_fit_decreasing"] >= 0.995
    assert efficiency["sequential"] < efficiency["local_greedy"] <= efficiency["best_fit_decreasing"]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"wrapped"}))
def test_documents_that_must_not_be_cut_are_refused_or_whole(strategy):
    with pytest.raises(ValueError, match=r"document 1 has 9 tokens, more than the capacity of 8, as have 2 of 4 .* 12"):
        pack_any([8, 9, 1, 12], 8, strategy, long_documents="error")
    whole = pack_any([8, 7, 1, 8], 8, strategy, long_documents="error")
    assert whole.num_split == 0
    assert_valid(whole, [8, 7, 1, 8], 8)


def test_a_strategy_that_cuts_everywhere_is_refused_where_documents_must_not_be_cut():
    with pytest.raises(ValueError, match="'wrapped' cuts documents wherever a pack ends; for long_documents='error'"):
        pack([1], 8, "wrapped", long_documents="error")


def test_a_long_document_can_be_named_by_its_row():
    with pytest.raises(ValueError, match="document 70 has 9 tokens"):
        refuse_long_documents(np.array([3, 9]), 8, np.array([5, 70]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 4), ValueError, r"at least one document.*\(0,\)"),
        (([3, 0, 2], 4), ValueError, "document 1 has length 0"),
        (([3, -2], 4), ValueError, "document 1 has length -2"),
        (([[1, 2]], 4), ValueError, r"one dimension.*\(1, 2\)"),
        (([1.5], 4), TypeError, "float64"),
        (([1], 0), ValueError, "capacity must be at least 1.*got 0"),
        (([1], -3), ValueError, "capacity must be at least 1.*got -3"),
        (([1], 2.5), TypeError, "capacity must be an integer, got 2.5"),
        (([1], True), TypeError, "capacity must be an integer, got True"),
        (([1], 4, "best"), ValueError, "unknown strategy 'best'; available: sequential, .*best_fit_decreasing"),
    ],
)
def test_bad_input_is_refused_with_its_value(arguments, error, message):
    with pytest.raises(error, match=message):
        pack(*arguments)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="buffer must be at least 1, got 0"):
        pack([1], 4, "local_greedy", buffer=0)
    with pytest.raises(ValueError, match="unknown long_documents 'drop'; available: split, error"):
        pack([1], 4, long_documents="drop")


def test_packs_index_like_a_sequence():
    packs = pack([4, 2, 3], 4, "sequential")
    assert len(packs) == 3
    assert packs[-1].doc.tolist() == packs[2].doc.tolist() == [2]
    with pytest.raises(IndexError, match="pack 3 does not exist; there are 3"):
        packs[3]
    assert "3 of 4 tokens" in repr(packs)
