"""Longest document first: classic bin packing, for runs of equal lengths at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from packmamba.data.packers.packs import Pieces


def decreasing(
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


def best_fit(values: np.ndarray, counts: np.ndarray, capacity: int) -> list[np.ndarray]:
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
"""Packs whose largest room `first_fit` keeps as one number."""


def first_fit(values: np.ndarray, counts: np.ndarray, capacity: int) -> list[np.ndarray]:
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
