"""Ways to train on the same documents, as batches.

| mode | a batch |
| --- | --- |
| `packed`, `packed:STRATEGY` | documents in one row of at most `capacity` tokens; best fit unless a strategy is named |
| `padded:B` | B documents in random order, each a row filled up to the longest |
| `padded` | as many such rows as `capacity` tokens have room for |
| `padded_sorted:B`, `padded_sorted` | the same after sorting by length, so that the rows of a batch are alike |
| `single` | one document |
| `mamba-ssm/MODE` | the same with mamba-ssm's mixers, which know no documents: `padded…` and `single` |
| `mamba-ssm/dense:L` | documents joined and cut every L tokens, `capacity` tokens a batch, leaking into each other |
| `mamba-ssm/packed` | packs, where the installed mamba-ssm is a fork whose mixers take boundaries (PackMamba's) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from packmamba.data.collate import collate
from packmamba.data.packers import Packs, pack
from packmamba.errors import UsageError, did_you_mean
from packmamba.packing import PackedBatch, Packing

KINDS = ("packed", "padded", "padded_sorted", "single")
PEERS = ("mamba-ssm",)
PEER_KINDS = (*KINDS, "dense")
PACKING_STRATEGIES = ("best_fit_decreasing", "first_fit_decreasing", "local_greedy", "sequential")
"""Those that keep documents whole and look at lengths only."""


@dataclass(frozen=True)
class Mode:
    """One way to train."""

    kind: str
    """A name of PEER_KINDS."""
    strategy: str = "best_fit_decreasing"
    """The packing strategy of mode `packed`."""
    size: int | None = None
    """Rows of a batch of `padded…`, tokens of a row of `dense`."""
    peer: str | None = None
    """Whose mixers; None: packmamba's."""

    def __str__(self) -> str:
        detail = {"packed": None if self.strategy == "best_fit_decreasing" else self.strategy}.get(self.kind, self.size)
        name = self.kind if detail is None else f"{self.kind}:{detail}"
        return name if self.peer is None else f"{self.peer}/{name}"


def parse_mode(text: str) -> Mode:
    """The mode of a name such as `packed`, `packed:sequential`, `padded:8`, `mamba-ssm/dense:4096`.

    Raises UsageError for a peer, a kind, a strategy or a size that does not exist, naming those that do.
    """
    peer, _, rest = text.rpartition("/")
    if peer and peer not in PEERS:
        raise UsageError(f"mode {text!r}: unknown peer {peer!r}; available: {', '.join(PEERS)}")
    kind, _, detail = rest.partition(":")
    kinds = PEER_KINDS if peer else KINDS
    if kind not in kinds:
        hint = did_you_mean(kind, kinds)
        raise UsageError(f"unknown mode {text!r}; available: {', '.join(kinds)}, and mamba-ssm/MODE{hint}")
    if kind == "packed":
        strategy = detail or "best_fit_decreasing"
        if strategy not in PACKING_STRATEGIES:
            raise UsageError(
                f"mode {text!r}: unknown strategy {strategy!r}; available: {', '.join(PACKING_STRATEGIES)}"
            )
        return Mode(kind, strategy, None, peer or None)
    if kind == "single" and detail:
        raise UsageError(f"mode {text!r}: 'single' has no size, it is one document at a time")
    if kind == "dense" and not detail:
        raise UsageError(f"mode {text!r}: 'dense' needs the tokens of a row, such as dense:4096")
    if detail and (not detail.isdecimal() or int(detail) < 1):
        raise UsageError(f"mode {text!r}: the size must be a whole number of at least 1, got {detail!r}")
    return Mode(kind, size=int(detail) if detail else None, peer=peer or None)


def cut(documents: Sequence[np.ndarray], capacity: int) -> list[np.ndarray]:
    """The documents, those longer than `capacity` tokens cut into pieces."""
    return [document[i : i + capacity] for document in documents for i in range(0, len(document), capacity)]


def require_fit(documents: Sequence[np.ndarray], capacity: int) -> np.ndarray:
    """The documents' lengths. Raises UsageError for a document longer than `capacity`, naming it."""
    lengths = np.array([len(document) for document in documents])
    if lengths.max() > capacity:
        longest = int(lengths.argmax())
        raise UsageError(
            f"document {longest} has {lengths[longest]:,} tokens, more than the capacity of {capacity:,}; raise the "
            "capacity, or cut the documents"
        )
    return lengths


def make_batches(mode: Mode, documents: Sequence[np.ndarray], capacity: int) -> list[PackedBatch]:
    """One pass over the documents (token ids, at least one each).

    Raises UsageError for a document longer than `capacity`, naming it.
    """
    if mode.kind == "dense":
        assert mode.size is not None
        return _dense(documents, mode.size, capacity)
    lengths = require_fit(documents, capacity)
    if mode.kind in ("packed", "single"):
        packs = pack(lengths, capacity, mode.strategy if mode.kind == "packed" else "single")
        return [_batch(documents, packs, index) for index in range(len(packs))]
    order = np.arange(lengths.size)
    if mode.kind == "padded_sorted":
        order = np.argsort(lengths, kind="stable")
    rows = [documents[i] for i in order.tolist()]
    if mode.size is None:
        packs = pack(lengths[order], capacity, "padded")
        return [_batch(rows, packs, index) for index in range(len(packs))]
    groups = [rows[i : i + mode.size] for i in range(0, len(rows), mode.size)]
    return [collate(group, np.arange(len(group)), row_length=max(map(len, group))) for group in groups]


def _batch(documents: Sequence[np.ndarray], packs: Packs, index: int) -> PackedBatch:
    pieces = packs[index]
    row_length = None if packs.row_lengths is None else int(packs.row_lengths[index])
    return collate([documents[doc] for doc in pieces.doc], pieces.doc, row_length=row_length)


def _dense(documents: Sequence[np.ndarray], row: int, capacity: int) -> list[PackedBatch]:
    """Whole rows of joined documents; the tokens that are left over at the end are one shorter row."""
    tokens = torch.from_numpy(np.concatenate(documents).astype(np.int64))
    labels = torch.cat([tokens[1:], tokens.new_full((1,), PackedBatch.IGNORE_INDEX)])
    rows = [(begin, min(row, len(tokens) - begin)) for begin in range(0, len(tokens), row)]
    per_batch = max(1, capacity // row)
    full, rest = rows[: len(tokens) // row], rows[len(tokens) // row :]
    groups = [full[i : i + per_batch] for i in range(0, len(full), per_batch)] + ([rest] if rest else [])
    batches = []
    for group in groups:
        part = slice(group[0][0], group[-1][0] + group[-1][1])
        targets = int((labels[part] != PackedBatch.IGNORE_INDEX).sum())
        packing = Packing.from_lengths([length for _, length in group])
        batches.append(PackedBatch(tokens[part], labels[part], packing, num_targets=targets))
    return batches
