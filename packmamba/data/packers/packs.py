"""What packing gives: packs of pieces of documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


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
    piece_targets: np.ndarray | None = None
    """int64 (K,): tokens to predict of each piece; None: all but its first."""

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
        """int64 (packs,): tokens to predict; a piece's first token is none, for nothing precedes it."""
        if self.piece_targets is not None:
            return np.add.reduceat(self.piece_targets, self.offsets[:-1])
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
