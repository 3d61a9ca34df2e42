"""Documents as they arrive: cut, end to end, or with a buffer; whole data sets at once, and as a stream."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from packmamba.data.packers.packs import Packs, Pieces


def cut(lengths: np.ndarray, order: np.ndarray, capacity: int) -> Pieces:
    """Documents in the given order, each cut every `capacity` tokens from its own start."""
    counts = -(-lengths[order] // capacity)
    doc = np.repeat(order, counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(doc.size) - first) * capacity
    return Pieces(doc, start, np.minimum(lengths[doc] - start, capacity))


def wrapped(lengths: np.ndarray, order: np.ndarray, capacity: int) -> Packs:
    ends = np.cumsum(lengths[order])
    begins = ends - lengths[order]
    cuts = np.arange(0, ends[-1], capacity)
    at = np.sort(np.concatenate([begins, cuts]), kind="stable")  # merges the two: each is sorted already
    at = at[np.diff(at, prepend=-1) > 0]
    place = np.searchsorted(begins, at, side="right") - 1
    length = np.diff(at, append=ends[-1])
    offsets = np.append(np.searchsorted(at, cuts), at.size)
    return Packs(Pieces(order[place], at - begins[place], length), offsets, capacity, "wrapped")


def sequential(lengths: np.ndarray, capacity: int) -> np.ndarray:
    ends = np.cumsum(lengths)
    offsets = [0]
    placed = 0
    while offsets[-1] < lengths.size:
        offsets.append(int(np.searchsorted(ends, placed + capacity, side="right")))
        placed = int(ends[offsets[-1] - 1])
    return np.array(offsets)


def padded(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
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


def local_greedy(lengths: np.ndarray, capacity: int, buffer: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of the pieces, and where packs begin in it."""
    n = lengths.size
    order: list[int] = []
    offsets = [0]
    for chosen in _greedy(iter((lengths * n + np.arange(n)[::-1]).tolist()), n, capacity, buffer):
        order += chosen
        offsets.append(len(order))
    return np.array(order), np.array(offsets)


def _greedy(keys: Iterator[int], n: int, capacity: int, buffer: int) -> Iterator[list[int]]:
    """The pieces of pack after pack, by their number. O(log buffer) comparisons a piece.

    A piece is one integer, length · n + n − 1 − number, that sorts by length, and among equal lengths puts the earliest
    arrival last (= taken first).
    """
    window = sorted(islice(keys, buffer))
    while window:
        room = capacity
        chosen: list[int] = []
        while fitting := bisect_left(window, (room + 1) * n):
            length, late = divmod(window.pop(fitting - 1), n)
            chosen.append(n - 1 - late)
            room -= length
        yield chosen
        for key in islice(keys, buffer - len(window)):
            insort(window, key)


Piece = tuple[int, int, int]
"""doc, start, length."""


def stream_sequential(pieces: Iterable[Piece], capacity: int) -> Iterator[list[Piece]]:
    pack: list[Piece] = []
    room = capacity
    for piece in pieces:
        if piece[2] > room:
            yield pack
            pack, room = [], capacity
        pack.append(piece)
        room -= piece[2]
    if pack:
        yield pack


def stream_local_greedy(pieces: Iterable[Piece], capacity: int, buffer: int) -> Iterator[list[Piece]]:
    waiting: dict[int, Piece] = {}
    most = 1 << 62  # more than a stream has pieces

    def keys() -> Iterator[int]:
        for number, piece in enumerate(pieces):
            waiting[number] = piece
            yield piece[2] * most + most - 1 - number

    for chosen in _greedy(keys(), most, capacity, buffer):
        yield [waiting.pop(number) for number in chosen]


def stream_wrapped(lengths: Iterable[int], capacity: int) -> Iterator[list[Piece]]:
    pack: list[Piece] = []
    room = capacity
    for doc, length in enumerate(lengths):
        start = 0
        while start < length:
            taken = min(length - start, room)
            pack.append((doc, start, taken))
            start += taken
            room -= taken
            if not room:
                yield pack
                pack, room = [], capacity
    if pack:
        yield pack
