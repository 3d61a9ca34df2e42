"""Pieces of documents -> PackedBatch, on the host.

The label of a position is the next token of its piece, if that is to be predicted; a piece's last token has none.
Filler tokens have none either: those of a padded row belong to the row's own sequence, a tail up to the capacity is one
more sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from packmamba.errors import UsageError
from packmamba.packing import PackedBatch, Packing

NO_DOCUMENT = -1
"""The document id of a sequence that is padding."""


def collate(
    pieces: Sequence[np.ndarray],
    doc_ids: np.ndarray,
    *,
    targets: Sequence[np.ndarray] | None = None,
    row_length: int | None = None,
    pad_to: int | None = None,
    pad_id: int = 0,
    step_targets: int | None = None,
) -> PackedBatch:
    """Packs token ids in order. Without a piece, the batch is one padding sequence of 1 (or `pad_to`) tokens.

    pieces: integer (length,) arrays. doc_ids: (pieces,) integers. targets: bool (length,) arrays, which tokens of each
    piece are to be predicted; None for all. row_length: fill every piece to so many tokens.
    pad_to: add one sequence of filler up to so many tokens. step_targets: see `PackedBatch`.

    Raises ValueError if a piece is longer than `row_length`, or all of them are longer than `pad_to`.
    """
    real = np.array([piece.size for piece in pieces], dtype=np.int64)
    if row_length is not None and real.max(initial=0) > row_length:
        raise UsageError(f"a piece of {real.max()} tokens does not fit in rows of {row_length}")
    lengths = real if row_length is None else np.full_like(real, row_length)
    total = int(lengths.sum())
    if pad_to is not None and total > pad_to:
        raise UsageError(f"{total} tokens do not fit in pad_to = {pad_to}")
    tail = pad_to - total if pad_to is not None else int(not pieces)
    if tail:
        real, lengths = np.append(real, 0), np.append(lengths, tail)
        doc_ids = np.append(doc_ids, NO_DOCUMENT)

    input_ids = np.full(int(lengths.sum()), pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, PackedBatch.IGNORE_INDEX)
    begins = np.cumsum(lengths) - lengths
    for index, (begin, piece) in enumerate(zip(begins.tolist(), pieces, strict=False)):
        input_ids[begin : begin + piece.size] = piece
        following = labels[begin : begin + piece.size - 1]
        following[:] = piece[1:]
        if targets is not None:
            following[~targets[index][1:]] = PackedBatch.IGNORE_INDEX
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        packing=Packing.from_lengths(lengths),
        num_targets=int((labels != PackedBatch.IGNORE_INDEX).sum()),
        num_padding=int((lengths - real).sum()),
        step_targets=step_targets,
        doc_ids=torch.from_numpy(doc_ids.astype(np.int64)),
        real_lengths=torch.from_numpy(real),
    )
