"""`cu_seqlens` -> the work items every kernel shares: segments that lie inside one document.

A document's state starts at its first token, so a boundary needs nothing from the left: segments of different documents
are independent, and only a document longer than one segment passes state between its own. Segments count from their
document's start, so a document's arithmetic does not depend on its place in the pack.

T tokens in a pack · S documents · I segments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

CHUNK = 64
"""Tokens of the smallest segment; every other segment size is a multiple of it."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Every document cut each `size` tokens from its own start; the last segment of a document may be shorter.

    Tables are in token order: segment i and i + 1 of one document are neighbours.
    """

    size: int
    start: Tensor
    """int32 (I,): first token."""
    length: Tensor
    """int32 (I,): tokens, 1 to `size`."""
    seq: Tensor
    """int32 (I,): the document it lies in."""
    cu_segments: Tensor
    """int32 (S+1,): document s owns the segments cu_segments[s] to cu_segments[s+1]."""
    order: Tensor
    """int32 (I,): the segments, longest first (stable), the order in which programs take them."""

    @property
    def num_segments(self) -> int:
        return self.start.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Segments:
        return self._map(lambda table: table.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Segments:
        return self._map(Tensor.pin_memory)

    def _map(self, move) -> Segments:
        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self) if f.name != "size"})


@dataclass(frozen=True, eq=False)
class Schedule:
    """The work items of one pack. Built on the host once a batch; the ops take it as `schedule=`."""

    chunks: Segments
    """Segments of CHUNK tokens."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Schedule:
        return Schedule(self.chunks.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Schedule:
        return Schedule(self.chunks.pin_memory())


def build_segments(cu_seqlens: Tensor, size: int) -> Segments:
    """Cuts documents each `size` tokens. cu_seqlens: int32 (S+1,) on the CPU."""
    bounds = cu_seqlens.numpy()
    lengths = np.diff(bounds)
    counts = -(-lengths // size)
    cu_segments = np.concatenate([[0], np.cumsum(counts)])
    seq = np.repeat(np.arange(lengths.size, dtype=np.int64), counts)
    offset = (np.arange(seq.size) - cu_segments[seq]) * size
    start = bounds[seq] + offset
    length = np.minimum(lengths[seq] - offset, size)
    order = np.argsort(-length, kind="stable")
    tables = (start, length, seq, cu_segments, order)
    return Segments(size, *(torch.from_numpy(table.astype(np.int32)) for table in tables))


def build_schedule(cu_seqlens: Tensor) -> Schedule:
    """The schedule of a pack. cu_seqlens: int32 (S+1,) on the CPU, strictly increasing from 0 to T."""
    return Schedule(build_segments(cu_seqlens, CHUNK))
