"""`cu_seqlens` -> the work items every kernel shares: segments that lie inside one document.

A document's state starts at its first token, so a boundary needs nothing from the left: segments of different documents
are independent, and only a document longer than one segment passes state between its own. Segments count from their
document's start, so a document's arithmetic does not depend on its place in the pack.

T tokens in a pack · S sequences (documents) · I segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

CHUNK = 64
"""Tokens of the smallest segment; every other segment size is a multiple of it."""

SIZES = (CHUNK, 256, 1024, 4096)
"""Segment sizes of a schedule. An op takes the largest that still gives the device enough programs."""

ITEM = 256
"""Tokens of an item, about. Shorter documents share one: their programs then are as few and as long as others, and read
parameters once for all of them."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Every document cut each `size` tokens from its own start; the last segment of a document may be shorter.

    Tables are in token order: segment i and i + 1 of one document are neighbours. Where the number of segments was not
    known on the host, empty ones (length 0) follow at the end.
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
    items: Tensor
    """int32 (K+1,): item k is the segments items[k] to items[k+1], those that start in its stretch of ITEM tokens of
    the pack (of `size` tokens, where that is less). Some have none."""
    item_order: Tensor
    """int32 (K,): the items, most tokens first, the order in which programs take them."""

    @property
    def num_segments(self) -> int:
        return self.start.shape[0]

    @property
    def num_seqs(self) -> int:
        return self.cu_segments.shape[0] - 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Segments:
        return self._map(lambda table: table.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Segments:
        return self._map(lambda table: table.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> Segments:
        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self) if f.name != "size"})


@dataclass(frozen=True, eq=False)
class Schedule:
    """The work items of one pack. Built on the host once a batch; the ops take it as `schedule=`."""

    num_tokens: int
    """T of the pack it was built for."""
    levels: tuple[Segments, ...]
    """The pack cut at each of SIZES, smallest first."""

    @property
    def chunks(self) -> Segments:
        """Segments of CHUNK tokens."""
        return self.levels[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Schedule:
        return Schedule(self.num_tokens, tuple(level.to(device, non_blocking) for level in self.levels))

    def pin_memory(self) -> Schedule:
        return Schedule(self.num_tokens, tuple(level.pin_memory() for level in self.levels))


def most_segments(size: int, num_tokens: int, num_seqs: int) -> int:
    """The most segments that so many documents of so many tokens in all can have."""
    return num_tokens // size + num_seqs


def build_segments(cu_seqlens: Tensor, size: int, num_tokens: int | None = None) -> Segments:
    """Cuts documents each `size` tokens.

    cu_seqlens: int32 (S+1,), strictly increasing from 0. num_tokens: T, and then nothing is read back from the tensor,
    and the tables have room for the most segments that there can be; None: they have as many rows as segments.
    """
    cu_seqlens = cu_seqlens.long()
    lengths = cu_seqlens.diff()
    counts = (lengths + (size - 1)) // size
    cu_segments = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    if num_tokens is None:
        num_tokens, num_segments = int(cu_seqlens[-1]), int(cu_segments[-1])
    else:
        num_segments = most_segments(size, num_tokens, lengths.shape[0])
    segment = torch.arange(num_segments, device=cu_seqlens.device)
    seq = torch.searchsorted(cu_segments[1:], segment, right=True).clamp(max=lengths.shape[0] - 1)
    offset = (segment - cu_segments[seq]) * size
    left = (lengths[seq] - offset).clamp(min=0)  # tokens from the segment's start to its document's end
    length = left.clamp(max=size)
    start = torch.minimum(cu_seqlens[seq] + offset, cu_seqlens[-1])
    order = torch.argsort(2 * length + (left > size), descending=True, stable=True)
    step = min(size, ITEM)
    stretch = torch.arange(-(-num_tokens // step) + 1, device=cu_seqlens.device) * step
    items = torch.minimum(torch.searchsorted(start, stretch), cu_segments[-1])
    tokens = torch.cat([start, cu_seqlens[-1:]])[items].diff()
    item_order = torch.argsort(tokens, descending=True, stable=True)
    return Segments(size, *(table.int() for table in (start, length, seq, cu_segments, order, items, item_order)))


def build_schedule(cu_seqlens: Tensor, num_tokens: int | None = None) -> Schedule:
    """The schedule of a pack. cu_seqlens: int32 (S+1,), strictly increasing from 0 to T.

    num_tokens: T. None: it and the numbers of segments are read back from the tensor, which has to be on the CPU.
    Where it is given nothing is read back (no host sync on a GPU, no data-dependent shape under torch.compile), and
    the tables have room for the most segments that S documents of T tokens can have.
    """
    if num_tokens is None:
        return Schedule(int(cu_seqlens[-1]), tuple(build_segments(cu_seqlens, size) for size in SIZES))
    return Schedule(num_tokens, tuple(build_segments(cu_seqlens, size, num_tokens) for size in SIZES))
