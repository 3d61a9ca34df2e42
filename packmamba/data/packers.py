"""Lengths in, packs of documents out: which document lies in which pack. NumPy only.

A *piece* is a run of tokens of one document: the whole document, or a part of one that had to be cut. A *pack* is a few
pieces that are trained side by side. Every token of every document is placed exactly once.

| strategy | what it does |
| --- | --- |
| `sequential` | arrival order; a pack is sealed when the next document does not fit |
| `local_greedy` | the same inside a buffer: the longest first, the rest filled with the longest that still fits |
| `first_fit_decreasing` | longest document first, into the first pack with room |
| `best_fit_decreasing` | longest document first, into the fullest pack with room |
| `wrapped` | documents end to end, cut every `capacity` tokens |
| `padded` | baseline: one document a row, rows padded to the longest of their batch |
| `single` | baseline: one document a pack |

`sequential` and `local_greedy` are PackMamba's (arXiv 2408.03865), `best_fit_decreasing` is that of "Fewer Truncations
Improve Language Modeling" (arXiv 2404.10830).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

Strategy = Literal[
    "sequential", "local_greedy", "first_fit_decreasing", "best_fit_decreasing", "wrapped", "padded", "single"
]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


class Pieces(NamedTuple):
    """Runs of tokens, int64 (K,) each: piece k is tokens `start[k]` to `start[k] + length[k]` of document `doc[k]`."""

    doc: np.ndarray
    start: np.ndarray
    length: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Packs:
    """Packs of pieces; `packs[p]` are the pieces of pack p, in the order of their tokens."""

    pieces: Pieces
    """The pieces of every pack, pack after pack."""
    offsets: np.ndarray
    """int64 (packs + 1,): pack p owns the pieces offsets[p] to offsets[p + 1]."""
    capacity: int
    """Tokens a pack can hold, a row's filler included."""
    strategy: str
    """The strategy that made them."""
    row_lengths: np.ndarray | None = None
    """int64 (packs,): the length that rows are padded to, where every piece is a row of a padded batch; else None."""

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, index: int) -> Pieces:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pack {index} does not exist; there are {len(self)} packs")
        begin, end = self.offsets[index % len(self)], self.offsets[index % len(self) + 1]
        return Pieces(*(column[begin:end] for column in self.pieces))

    def __iter__(self) -> Iterator[Pieces]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def num_pieces(self) -> np.ndarray:
        """int64 (packs,): pieces of each pack."""
        return np.diff(self.offsets)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """int64 (packs,): real tokens of each pack."""
        return np.add.reduceat(self.pieces.length, self.offsets[:-1])

    @cached_property
    def num_targets(self) -> np.ndarray:
        """int64 (packs,): tokens with a next token to predict, which a piece's last token does not have."""
        return self.num_tokens - self.num_pieces

    @cached_property
    def size(self) -> np.ndarray:
        """int64 (packs,): tokens of each pack as it is laid out, filler of padded rows included."""
        return self.num_tokens if self.row_lengths is None else self.num_pieces * self.row_lengths

    @property
    def num_split(self) -> int:
        """Documents that lie in more than one piece; their later pieces have `start > 0`."""
        return np.unique(self.pieces.doc[self.pieces.start > 0]).size

    @property
    def efficiency(self) -> float:
        """How full the packs are: real tokens ÷ (packs · capacity)."""
        return float(self.num_tokens.sum() / (len(self) * self.capacity))

    @property
    def padding_fraction(self) -> float:
        """Filler ÷ all tokens, when `padded` rows are filled to their batch's longest, any other pack to capacity."""
        if self.row_lengths is None:
            return 1.0 - self.efficiency
        return float(1.0 - self.num_tokens.sum() / self.size.sum())

    def __repr__(self) -> str:
        return (
            f"Packs({len(self)} of {self.capacity} tokens, {self.pieces.doc.size} pieces, "
            f"{self.num_split} documents split, {self.efficiency:.2%} full, {self.strategy})"
        )


def pack(
    lengths: Sequence[int] | np.ndarray,
    capacity: int,
    strategy: str = "best_fit_decreasing",
    *,
    seed: int | None = None,
    buffer: int = 1024,
) -> Packs:
    """Places every token of every document in a pack of at most `capacity` tokens. Deterministic.

    lengths: (documents,) integers, tokens of each document. seed: take the documents in a random order instead of as
    they arrive, which also decides ties among equal lengths. buffer: documents that `local_greedy` looks at.

    A document longer than `capacity` is cut every `capacity` tokens (`wrapped` cuts wherever a pack ends); nothing is
    truncated or dropped, and `Packs.num_split` counts such documents.

    Raises ValueError for lengths that are not one-dimensional, an empty list, a length below 1 (named with its index),
    a capacity or buffer below 1, or an unknown strategy; TypeError for lengths or a capacity that are not integers.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; available: {', '.join(STRATEGIES)}")
    _require_positive_integer("capacity", capacity)
    _require_positive_integer("buffer", buffer)
    lengths = _checked_lengths(lengths)
    order = np.arange(lengths.size) if seed is None else np.random.default_rng(seed).permutation(lengths.size)
    if strategy == "wrapped":
        return _wrapped(lengths, order, capacity)
    pieces = _cut(lengths, order, capacity)
    row_lengths = None
    if strategy == "sequential":
        offsets = _sequential(pieces.length, capacity)
    elif strategy == "local_greedy":
        chosen, offsets = _local_greedy(pieces.length, capacity, buffer)
        pieces = Pieces(*(column[chosen] for column in pieces))
    elif strategy == "first_fit_decreasing":
        pieces, offsets = _decreasing(pieces, capacity, _first_fit)
    elif strategy == "best_fit_decreasing":
        pieces, offsets = _decreasing(pieces, capacity, _best_fit)
    elif strategy == "padded":
        offsets, row_lengths = _padded(pieces.length, capacity)
    else:
        offsets = np.arange(pieces.length.size + 1)
    return Packs(pieces, offsets, capacity, strategy, row_lengths)


def _require_positive_integer(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(
            f"{name} must be at least 1 token, got {value}"
            if name == "capacity"
            else f"{name} must be at least 1, got {value}"
        )


def _checked_lengths(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    values = np.asarray(lengths)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"lengths must name at least one document in one dimension, got shape {values.shape}")
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"lengths must be integers, got dtype {values.dtype}")
    if values.min() < 1:
        index = int(np.argmax(values < 1))
        raise ValueError(f"document {index} has length {values[index]}; every document needs at least one token")
    return values.astype(np.int64)


def _cut(lengths: np.ndarray, order: np.ndarray, capacity: int) -> Pieces:
    """Documents in the given order, each cut every `capacity` tokens from its own start."""
    counts = -(-lengths[order] // capacity)
    doc = np.repeat(order, counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(doc.size) - first) * capacity
    return Pieces(doc, start, np.minimum(lengths[doc] - start, capacity))


def _wrapped(lengths: np.ndarray, order: np.ndarray, capacity: int) -> Packs:
    ends = np.cumsum(lengths[order])
    begins = ends - lengths[order]
    cuts = np.arange(0, ends[-1], capacity)
    at = np.union1d(begins, cuts)
    place = np.searchsorted(begins, at, side="right") - 1
    length = np.diff(at, append=ends[-1])
    offsets = np.append(np.searchsorted(at, cuts), at.size)
    return Packs(Pieces(order[place], at - begins[place], length), offsets, capacity, "wrapped")


def _sequential(lengths: np.ndarray, capacity: int) -> np.ndarray:
    ends = np.cumsum(lengths)
    offsets = [0]
    placed = 0
    while offsets[-1] < lengths.size:
        offsets.append(int(np.searchsorted(ends, placed + capacity, side="right")))
        placed = int(ends[offsets[-1] - 1])
    return np.array(offsets)


def _padded(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in arrival order; a batch is sealed when rows · longest would exceed the capacity."""
    offsets, row_lengths = [0], []
    longest = 0
    for index, length in enumerate(lengths.tolist()):
        widest = max(longest, length)
        if widest * (index + 1 - offsets[-1]) > capacity:
            offsets.append(index)
            row_lengths.append(longest)
            widest = length
        longest = widest
    offsets.append(lengths.size)
    row_lengths.append(longest)
    return np.array(offsets), np.array(row_lengths)


def _local_greedy(lengths: np.ndarray, capacity: int, buffer: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of the pieces, and where packs begin in it. O(log buffer) comparisons a piece."""
    n = lengths.size
    # One integer a piece that sorts by length, and among equal lengths puts the earliest arrival last (= taken first).
    keys = (lengths * n + np.arange(n)[::-1]).tolist()
    window = sorted(keys[:buffer])
    arrived = len(window)
    order: list[int] = []
    offsets = [0]
    while window:
        room = capacity
        while fitting := bisect_left(window, (room + 1) * n):
            length, late = divmod(window.pop(fitting - 1), n)
            order.append(n - 1 - late)
            room -= length
        offsets.append(len(order))
        while len(window) < buffer and arrived < n:
            insort(window, keys[arrived])
            arrived += 1
    return np.array(order), np.array(offsets)


def _decreasing(
    pieces: Pieces, capacity: int, place: Callable[[np.ndarray, np.ndarray, int], list[np.ndarray]]
) -> tuple[Pieces, np.ndarray]:
    """Sorts pieces longest first, lets `place` choose a pack for runs of equal length, and groups them by pack."""
    by_length = _stable_argsort(capacity - pieces.length)
    descending = pieces.length[by_length]
    first = np.flatnonzero(np.diff(descending, prepend=capacity + 1))
    bins = np.concatenate(place(descending[first], np.diff(first, append=descending.size), capacity))
    order = by_length[_stable_argsort(bins)]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bins))])
    return Pieces(*(column[order] for column in pieces)), offsets


def _stable_argsort(keys: np.ndarray) -> np.ndarray:
    """A stable argsort of integers ≥ 0 that takes linear time below 2^32: NumPy sorts 16 bits by counting."""
    if keys.max() < 2**16:
        return np.argsort(keys.astype(np.uint16), kind="stable")
    if keys.max() >= 2**32:
        return np.argsort(keys, kind="stable")
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    return order[np.argsort((keys >> 16)[order].astype(np.uint16), kind="stable")]


def _best_fit(values: np.ndarray, counts: np.ndarray, capacity: int) -> list[np.ndarray]:
    """The pack of each piece, for runs of `counts` pieces of `values` tokens, values strictly decreasing.

    The fullest pack with room for a length stays the fullest until the length no longer fits, so it takes
    `room // length` pieces at once, and so does every other pack with the same room: packs move in groups. A group that
    takes what fits keeps less than half its room, so it moves at most log2(capacity) times, and a length splits at most
    two groups: O(lengths · log capacity) moves, whatever the number of documents.
    """
    groups: dict[int, list[np.ndarray]] = {}
    rooms = _IntegerSet(capacity)
    placed: list[np.ndarray] = []
    num_bins = 0

    def put(bins: np.ndarray, room: int) -> None:
        if bins.size and room:
            groups.setdefault(room, []).append(bins)
            rooms.add(room)

    for length, count in zip(values.tolist(), counts.tolist(), strict=True):
        while count:
            room = rooms.smallest_from(length)
            if room is None:
                room = capacity
                bins = np.arange(num_bins, num_bins - (-count // (room // length)))
                num_bins += bins.size
            else:
                bins = groups[room].pop()
                if not groups[room]:
                    rooms.remove(room)
            each = room // length
            full = min(bins.size, count // each)
            placed.append(np.repeat(bins[:full], each))
            put(bins[:full], room - each * length)
            count -= full * each
            if full < bins.size and count:
                placed.append(np.repeat(bins[full : full + 1], count))
                put(bins[full : full + 1], room - count * length)
                put(bins[full + 1 :], room)
                count = 0
            else:
                put(bins[full:], room)
    return placed


class _IntegerSet:
    """A set of integers from 0 to `largest` that finds its smallest member from a bound upwards: a bitmap in words, and
    a bitmap of the words that are not empty."""

    _BITS = 1024

    def __init__(self, largest: int) -> None:
        self.words = [0] * (largest // self._BITS + 1)
        self.occupied = 0

    def add(self, value: int) -> None:
        self.words[value // self._BITS] |= 1 << value % self._BITS
        self.occupied |= 1 << value // self._BITS

    def remove(self, value: int) -> None:
        self.words[value // self._BITS] &= ~(1 << value % self._BITS)
        if not self.words[value // self._BITS]:
            self.occupied &= ~(1 << value // self._BITS)

    def smallest_from(self, bound: int) -> int | None:
        """The smallest member ≥ bound, or None."""
        word, bit = divmod(bound, self._BITS)
        if found := self.words[word] >> bit:
            return bound + _lowest_bit(found)
        if not (later := self.occupied >> word + 1):
            return None
        word += 1 + _lowest_bit(later)
        return word * self._BITS + _lowest_bit(self.words[word])


def _lowest_bit(value: int) -> int:
    return (value & -value).bit_length() - 1


_BLOCK = 1024
"""Packs whose largest room `_first_fit` keeps as one number."""


def _first_fit(values: np.ndarray, counts: np.ndarray, capacity: int) -> list[np.ndarray]:
    """The pack of each piece, for runs of `counts` pieces of `values` tokens, values strictly decreasing.

    The first pack with room for a length takes `room // length` pieces before the next has its turn. Packs are looked
    at in blocks: a block whose largest room is too small is skipped, and the others are taken a few at a time.
    """
    total = int((values * counts).sum())
    num_blocks = -(-(2 * total // capacity + 2) // _BLOCK)  # first fit leaves at most one pack half empty or more
    room = np.zeros((num_blocks, _BLOCK), dtype=np.int64)
    largest = np.zeros(num_blocks, dtype=np.int64)
    flat = room.reshape(-1)
    placed: list[np.ndarray] = []
    num_bins = 0
    for length, count in zip(values.tolist(), counts.tolist(), strict=True):
        candidates = np.flatnonzero(largest >= length)
        looked_at, width = 0, 1
        while count and looked_at < candidates.size:
            blocks = candidates[looked_at : looked_at + width]
            looked_at += width
            width *= 2
            rooms = room[blocks].reshape(-1)
            fitting = np.flatnonzero(rooms >= length)
            each = rooms[fitting] // length
            before = np.cumsum(each) - each
            each = np.clip(count - before, 0, each)
            rooms[fitting] -= each * length
            room[blocks] = rooms.reshape(-1, _BLOCK)
            largest[blocks] = room[blocks].max(axis=1)
            placed.append(np.repeat(blocks[fitting // _BLOCK] * _BLOCK + fitting % _BLOCK, each))
            count -= int(each.sum())
        if count:
            each = capacity // length
            bins = np.arange(num_bins, num_bins - (-count // each))
            num_bins += bins.size
            placed.append(np.repeat(bins, each)[:count])
            flat[bins] = capacity - each * length
            flat[bins[-1]] = capacity - (count - (bins.size - 1) * each) * length
            blocks = np.arange(bins[0] // _BLOCK, bins[-1] // _BLOCK + 1)
            largest[blocks] = room[blocks].max(axis=1)
    return placed
