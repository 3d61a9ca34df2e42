"""Packs as a dataset that any number of loader workers can index, and the sampler that walks through it.

A batch is a pure function of its key, so workers hold no position, and a position is a few numbers to start from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from packmamba.data.collate import collate
from packmamba.data.documents import Documents
from packmamba.data.packers import Packs
from packmamba.data.plan import (
    NO_PACK,
    EpochPlan,
    PlanOptions,
    micro_steps_left,
    num_micro_steps,
    packs_after,
    plan_epoch,
)
from packmamba.data.position import Key, Position
from packmamba.packing import PackedBatch


class PlannedDataset(Dataset[PackedBatch], ABC):
    """The batches of one rank, `dataset[Key(position, micro_step)]`: by plan, from sections of documents."""

    def __init__(
        self,
        options: PlanOptions,
        *,
        rank: int = 0,
        pad_to: int | None = None,
        pad_id: int = 0,
    ) -> None:
        """rank: 0 to options.world_size - 1. pad_to, pad_id: see `collate`."""
        self.options = options
        self.rank = rank
        self.pad_to = pad_to
        self.pad_id = pad_id
        self.nameless: np.ndarray | None = None
        """Numbers of documents whose tokens come without an id, so that no result counts them."""
        self._plan: tuple[Position, EpochPlan] | None = None

    @abstractmethod
    def section(self, position: Position) -> tuple[Documents, Packs, int]:
        """The section at a position: documents, their packs, and the number that is added to a document's row in its
        corpus to make its id. At least one document."""

    @abstractmethod
    def length(self) -> int | None:
        """Micro-steps that would train on every pack; None where they are not known ahead. It is the number that
        Lightning applies `limit_train_batches` to, and counts against, also after a resume."""

    @abstractmethod
    def keys(self, position: Position) -> Iterator[Key]:
        """The keys that are left of the epoch of a position."""

    @abstractmethod
    def after(self, position: Position, micro_steps: int) -> tuple[Position, int]:
        """The position so many micro-steps later, and how many of them lie behind it, in an optimiser step that is not
        complete."""

    @abstractmethod
    def micro_steps_done(self, position: Position, counted: int) -> int:
        """How many of its micro-steps an epoch has behind it at a position. counted: those that a run has counted which
        may have had other ranks."""

    @abstractmethod
    def describe(self, position: Position) -> str:
        """A position in words."""

    @abstractmethod
    def digests(self, position: Position) -> dict[str, str | None]:
        """Hashes of the texts and of the chat template at a position; empty where they are not known."""

    def plan(self, position: Position) -> EpochPlan:
        """The plan of the rest of a section; the latest is kept."""
        if self._plan is None or self._plan[0] != position:
            _, packs, _ = self.section(position)
            numbers = (position.epoch, position.section) if self.options.whole_steps else position.epoch
            self._plan = position, plan_epoch(packs, numbers, self.options, position.packs)
        return self._plan[1]

    def __getitem__(self, key: Key) -> PackedBatch:
        plan = self.plan(key.position)
        index = int(plan.packs[key.micro_step, self.rank])
        step_targets = int(plan.step_targets[key.micro_step])
        if index == NO_PACK:
            return collate([], np.empty(0, np.int64), pad_to=self.pad_to, pad_id=self.pad_id, step_targets=step_targets)
        documents, packs, first_id = self.section(key.position)
        doc, start, length = packs[index]
        rows = documents.rows[doc]
        ids = rows + first_id if self.nameless is None else np.where(np.isin(doc, self.nameless), -1, rows + first_id)
        begins = documents.corpus.offsets[rows] + start
        tokens, targets = documents.corpus.tokens, documents.corpus.targets
        slices = [slice(begin, begin + size) for begin, size in zip(begins.tolist(), length.tolist(), strict=True)]
        return collate(
            [tokens[piece] for piece in slices],
            ids,
            targets=None if targets is None else [targets[piece] for piece in slices],
            row_length=None if packs.row_lengths is None else int(packs.row_lengths[index]),
            pad_to=self.pad_to,
            pad_id=self.pad_id,
            step_targets=step_targets,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan": None}


class PackedDataset(PlannedDataset):
    """The batches of one rank where all documents are known.

    A sequence of the first epoch's batches, to those who know nothing of positions: the integer
    epoch · len(dataset) + micro-step is a key too.
    """

    def __init__(self, documents: Documents, packs: Packs, options: PlanOptions, **batch: Any) -> None:
        """documents: those that `packs` numbers. batch: rank, pad_to and pad_id, see `PlannedDataset`."""
        super().__init__(options, **batch)
        self.documents = documents
        self.packs = packs

    def __len__(self) -> int:
        """M, the micro-steps of an epoch."""
        return num_micro_steps(len(self.packs), self.options)

    def shortened(self, micro_steps: int) -> PackedDataset:
        """The same, with epochs of at most so many micro-steps."""
        options = replace(self.options, max_micro_steps=micro_steps)
        return PackedDataset(
            self.documents, self.packs, options, rank=self.rank, pad_to=self.pad_to, pad_id=self.pad_id
        )

    def only_whole(self, micro_steps: int) -> int:
        """Makes the documents nameless that the first micro-steps do not hold to the end, and returns how many of them
        are left."""
        pieces = self.packs.pieces
        seen = self.packs.offsets[min(len(self.packs), micro_steps * self.options.world_size)]
        self.nameless = np.unique(pieces.doc[seen:])
        return np.setdiff1d(pieces.doc[:seen], self.nameless).size

    def section(self, position: Position) -> tuple[Documents, Packs, int]:
        return self.documents, self.packs, 0

    def length(self) -> int:
        return num_micro_steps(len(self.packs), replace(self.options, max_micro_steps=None))

    def keys(self, position: Position) -> Iterator[Key]:
        left = micro_steps_left(len(self.packs), position.packs, self.options)
        return (Key(position, micro_step) for micro_step in range(left))

    def after(self, position: Position, micro_steps: int) -> tuple[Position, int]:
        while micro_steps >= (left := micro_steps_left(len(self.packs), position.packs, self.options)):
            micro_steps -= left
            position = Position(position.epoch + 1)
        packs, open_steps = packs_after(len(self.packs), position.packs, micro_steps, self.options)
        return position._replace(packs=packs), open_steps

    def micro_steps_done(self, position: Position, counted: int) -> int:
        return len(self) - micro_steps_left(len(self.packs), position.packs, self.options)

    def describe(self, position: Position) -> str:
        return f"{position.packs} of {len(self.packs)} packs of epoch {position.epoch}"

    def digests(self, position: Position) -> dict[str, str | None]:
        return self.documents.corpus.digests

    def __getitem__(self, key: Key | int) -> PackedBatch:
        if isinstance(key, int):
            if key < 0:
                raise IndexError(f"keys start at 0, got {key}")
            epoch, micro_step = divmod(key, len(self))
            key = Key(Position(epoch), micro_step)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[PackedBatch]:
        return (self[key] for key in range(len(self)))


class PlanSampler(DistributedSampler):
    """The keys of an epoch, from the position on that `start` returns: here, the beginning of the first epoch.

    A `DistributedSampler`, because Lightning leaves those alone, whether or not `use_distributed_sampler` is set: the
    plan has dealt the packs to the ranks already.
    """

    def __init__(self, dataset: PlannedDataset) -> None:
        # A DistributedSampler asks for a length, which a stream has not; this one has no use for it.
        super().__init__(range(0), num_replicas=dataset.options.world_size, rank=dataset.rank, shuffle=False)  # pyright: ignore[reportArgumentType]
        self.planned = dataset

    def start(self) -> Position:
        """Where an iteration that begins now starts."""
        return Position()

    def __iter__(self) -> Iterator[Key]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.planned.keys(self.start())

    def __len__(self) -> int:
        """The dataset's `length`. Raises TypeError where it is not known ahead, as Lightning expects it."""
        length = self.planned.length()
        if length is None:
            raise TypeError("how many batches a stream has is not known ahead")
        return length


class PackLoader(DataLoader[PackedBatch]):
    """A DataLoader that Lightning recognises as resumable. It has no state: the data module keeps the position, because
    Lightning saves the loader of rank 0 only."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def pack_loader(sampler: PlanSampler, *, num_workers: int, pin_memory: bool) -> PackLoader:
    """The batches of a sampler's keys, prepared by so many processes (0: this one)."""
    # Not a constructor: Lightning makes a loader again from the arguments of DataLoader.
    return PackLoader(
        sampler.planned,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )
