"""`cu_seqlens` -> the schedule every kernel shares: segments that lie inside one document, in one int32 buffer.

A document's state starts at its first token, so a boundary needs nothing from the left: segments of different documents
are independent, and only a document longer than one segment passes state between its own. Segments count from their
document's start, so a document's arithmetic does not depend on its place in the pack.

T tokens in a pack · S sequences (documents) · I segments · K walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 64
"""Tokens of the smallest segment; every other segment size is a multiple of it."""

SIZES = (CHUNK, 256, 1024, 4096)
"""Segment sizes of a schedule. An op takes the largest that still gives the device enough programs."""

WALK = 256
"""Tokens of a walk, about. Shorter documents share one: their programs then are as few and as long as others, and read
parameters once for all of them."""

ALIGNMENT = 4
"""Tables begin at multiples of so many elements of the buffer, 16 bytes, as kernels are compiled for."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Every document cut each `size` tokens from its own start; the last segment of a document may be shorter.

    Tables are views of a schedule's buffer, in token order: segment i and i + 1 of one document are neighbours. Where
    the number of segments was not known on the host, empty ones (length 0) follow at the end.
    """

    size: int
    start: Tensor
    """int32 (I,): first token."""
    length: Tensor
    """int32 (I,): tokens, 1 to `size`; 0 for the empty ones at the end."""
    seq: Tensor
    """int32 (I,): the document it lies in."""
    cu_segments: Tensor
    """int32 (S+1,): document s owns the segments cu_segments[s] to cu_segments[s+1]."""
    order: Tensor
    """int32 (I,): the segments, longest first. Those that another segment of their document follows, all `size` tokens
    long, come before all others; ties keep token order."""
    walks: Tensor
    """int32 (K+1,): walk k, the work of one program, is the segments walks[k] to walks[k+1], those that start in its
    stretch of WALK tokens of the pack (of `size` tokens, where that is less). Some have none."""
    walk_order: Tensor
    """int32 (K,): the walks, most tokens first, the order in which programs take them."""

    @property
    def num_segments(self) -> int:
        return self.start.shape[0]

    @property
    def num_seqs(self) -> int:
        return self.cu_segments.shape[0] - 1

    @property
    def num_links(self) -> int:
        """Segments that another one follows; more where there are empty ones."""
        return self.num_segments - self.num_seqs

    @property
    def num_walks(self) -> int:
        return self.walk_order.shape[0]


class Offsets(NamedTuple):
    """Where a schedule's buffer holds the segments of one size: all that is needed to find their tables."""

    size: int
    begin: int
    """Element of the buffer at which the first table begins."""
    num_segments: int

    def table_sizes(self, num_tokens: int, num_seqs: int) -> dict[str, int]:
        """Elements of each table of `Segments`, in the buffer's order."""
        num_walks = -(-num_tokens // min(self.size, WALK))
        return {
            "start": self.num_segments,
            "length": self.num_segments,
            "seq": self.num_segments,
            "cu_segments": num_seqs + 1,
            "order": self.num_segments,
            "walks": num_walks + 1,
            "walk_order": num_walks,
        }


@dataclass(frozen=True, eq=False)
class Schedule:
    """The segments of one pack, cut at each of several sizes. Built on the host once a batch; ops take it as
    `schedule=`. One tensor, so that it moves, pins and pickles as one."""

    buffer: Tensor
    """int32: cu_seqlens, then the tables of each size, every one at a multiple of ALIGNMENT elements."""
    num_tokens: int
    """T of the pack it was built for."""
    num_seqs: int
    """S of that pack."""
    offsets: tuple[Offsets, ...]
    """Where the buffer holds the segments of each size, smallest first."""
    cu_seqlens: Tensor = field(init=False, repr=False)
    """int32 (S+1,): what it was built from, a view of the buffer."""
    _segments: dict[int, Segments] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cu_seqlens", self.buffer[: self.num_seqs + 1])

    @property
    def device(self) -> torch.device:
        return self.buffer.device

    def offsets_of(self, size: int) -> Offsets:
        for offsets in self.offsets:
            if offsets.size == size:
                return offsets
        raise ValueError(f"no segments of {size} tokens, only of {[offsets.size for offsets in self.offsets]}")

    def num_segments(self, size: int) -> int:
        return self.offsets_of(size).num_segments

    def segments(self, size: int) -> Segments:
        """The segments of that size: views, made once."""
        known = self._segments.get(size)
        if known is None:
            offsets = self.offsets_of(size)
            sizes = offsets.table_sizes(self.num_tokens, self.num_seqs)
            tables = _tables(self.buffer, offsets.begin, sizes.values())
            known = self._segments[size] = Segments(size, **dict(zip(sizes, tables, strict=True)))
        return known

    @property
    def levels(self) -> tuple[Segments, ...]:
        """The segments of each size, smallest first."""
        return tuple(self.segments(offsets.size) for offsets in self.offsets)

    @property
    def chunks(self) -> Segments:
        """Segments of CHUNK tokens."""
        return self.segments(CHUNK)

    def held_in(self, buffer: Tensor) -> Schedule:
        """The same schedule in another copy of its buffer."""
        return Schedule(buffer, self.num_tokens, self.num_seqs, self.offsets)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Schedule:
        """The same schedule on `device`, by one copy; itself if it is there already."""
        buffer = self.buffer.to(device, non_blocking=non_blocking)
        return self if buffer is self.buffer else self.held_in(buffer)

    def pin_memory(self) -> Schedule:
        return self.held_in(self.buffer.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        # As a NumPy array: a loader worker would send a tensor by a file descriptor, which takes milliseconds.
        buffer = self.buffer.numpy() if self.buffer.device.type == "cpu" else self.buffer
        return _restore, (buffer, self.num_tokens, self.num_seqs, self.offsets)


def _restore(buffer: np.ndarray | Tensor, *rest: Any) -> Schedule:
    return Schedule(torch.as_tensor(buffer), *rest)


class Documents(NamedTuple):
    """Where the documents of a call begin, and how they are cut: what an operator is given beside its inputs."""

    cu_seqlens: Tensor
    num_tokens: int
    schedule: Schedule | None
    offsets: Offsets
    """The segments that suit the call. Without a schedule: their size, and the most there can be."""

    def segments(self) -> Segments:
        """Those of the schedule; without one, built now. Not for fake tensors: the schedule keeps them."""
        if self.schedule is None:
            return build_segments(self.cu_seqlens, self.offsets.size, self.num_tokens)
        return self.schedule.segments(self.offsets.size)


def most_segments(size: int, num_tokens: int, num_seqs: int) -> int:
    """The most segments that so many documents of so many tokens in all can have."""
    return num_tokens // size + num_seqs


def build_segments(cu_seqlens: Tensor, size: int, num_tokens: int | None = None) -> Segments:
    """Documents cut each `size` tokens; arguments as those of `build_schedule`."""
    return build_schedule(cu_seqlens, num_tokens, sizes=(size,)).segments(size)


def build_schedule(cu_seqlens: Tensor, num_tokens: int | None = None, *, sizes: Sequence[int] = SIZES) -> Schedule:
    """The schedule of a pack. cu_seqlens: int32 (S+1,), strictly increasing from 0 to T. sizes: tokens of segments.

    num_tokens: T. None: it and the numbers of segments are read back from the tensor, which has to be on the CPU.
    Where it is given nothing is read back (no host sync on a GPU, no data-dependent shape under torch.compile), and
    the tables have room for the most segments that S documents of T tokens can have.
    """
    num_seqs = cu_seqlens.shape[0] - 1
    exact = num_tokens is None
    if num_tokens is None:
        num_tokens = int(cu_seqlens[-1])
    bounds = cu_seqlens.long()
    lengths = bounds.diff()
    first, last = bounds[:1], bounds[-1:]
    stretches = {step: _stretches(num_tokens, step, bounds.device) for step in {min(size, WALK) for size in sizes}}
    tables: list[Tensor] = [bounds]
    offsets: list[Offsets] = []
    begin = _rounded(num_seqs + 1)
    for size in sizes:
        counts = (lengths + (size - 1)) // size
        cu_segments = torch.cat([first, counts.cumsum(0)])  # the first bound is 0
        num_segments = int(cu_segments[-1]) if exact else most_segments(size, num_tokens, num_seqs)
        level = Offsets(size, begin, num_segments)
        offsets.append(level)
        tables += _cut(bounds, lengths, last, cu_segments, level, stretches[min(size, WALK)], exact=exact)
        begin += sum(map(_rounded, level.table_sizes(num_tokens, num_seqs).values()))
    padding = bounds.new_zeros(ALIGNMENT)
    pieces = [piece for table in tables for piece in (table, padding[: -table.shape[0] % ALIGNMENT])]
    buffer = torch.cat(pieces).int()
    return Schedule(buffer, num_tokens, num_seqs, tuple(offsets))


def _stretches(num_tokens: int, step: int, device: torch.device) -> Tensor:
    """Where the pack's stretches of `step` tokens begin, and T rounded up to one."""
    return torch.arange(-(-num_tokens // step) + 1, device=device) * step


def _cut(
    bounds: Tensor, lengths: Tensor, last: Tensor, cu_segments: Tensor, level: Offsets, stretch: Tensor, *, exact: bool
) -> tuple[Tensor, ...]:
    """The tables of one size, int64, in the order of `Offsets.table_sizes`. last: (1,), T. exact: there are no empty
    segments, whose rows would have to be held within bounds."""
    size, _, num_segments = level
    segment = torch.arange(num_segments, device=bounds.device)
    seq = torch.searchsorted(cu_segments[1:], segment, right=True)
    if not exact:
        seq = seq.clamp(max=lengths.shape[0] - 1)
    offset = (segment - cu_segments[seq]) * size
    left = lengths[seq] - offset  # tokens from the segment's start to its document's end
    start = bounds[seq] + offset
    if not exact:
        left, start = left.clamp(min=0), torch.minimum(start, last)
    length = left.clamp(max=size)
    order = torch.argsort(2 * length + (left > size), descending=True, stable=True)
    walks = torch.searchsorted(start, stretch)
    if not exact:
        walks = torch.minimum(walks, cu_segments[-1])
    tokens = torch.cat([start, last])[walks].diff()
    walk_order = torch.argsort(tokens, descending=True, stable=True)
    return start, length, seq, cu_segments, order, walks, walk_order


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _tables(buffer: Tensor, begin: int, sizes: Any) -> list[Tensor]:
    """Views of so many elements each, one after the other from `begin`, all at multiples of ALIGNMENT."""
    views = []
    for size in sizes:
        views.append(buffer[begin : begin + size])
        begin += _rounded(size)
    return views
