"""Packs as a dataset that any number of loader workers can index, and the sampler that walks through it.

What lies behind the key of a batch is a pure function of it, so workers hold no position, and a position is a few
numbers to start from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from packmamba.data.collate import collate
from packmamba.data.corpus import Corpus
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
from packmamba.packing import PackedBatch


class Position(NamedTuple):
    """Where training stands, the same on every rank: all packs before it are trained on, and none behind it."""

    epoch: int = 0
    section: int = 0
    """Of a streamed source; any other has one."""
    packs: int = 0
    """How many packs of the section's order are done, by whole optimiser steps."""


class Key(NamedTuple):
    """A batch of each rank: the one so many micro-steps after a position."""

    position: Position
    micro_step: int


class PackedDataset(Dataset[PackedBatch]):
    """The batches of one rank: `dataset[Key(position, micro_step)]`.

    A sequence of the first epoch's batches, to those who know nothing of positions: the integer
    epoch · len(dataset) + micro-step is a key too.
    """

    def __init__(
        self,
        corpus: Corpus,
        documents: np.ndarray,
        packs: Packs,
        options: PlanOptions,
        *,
        rank: int = 0,
        pad_to: int | None = None,
        pad_id: int = 0,
    ) -> None:
        """documents: int64 (packed documents,), the row in `corpus` of each document that `packs` numbers.
        rank: 0 to options.world_size - 1. pad_to, pad_id: see `collate`."""
        self.corpus = corpus
        self.documents = documents
        self.packs = packs
        self.options = options
        self.rank = rank
        self.pad_to = pad_to
        self.pad_id = pad_id
        self._plan: tuple[Position, EpochPlan] | None = None

    def __len__(self) -> int:
        """M, the micro-steps of an epoch."""
        return num_micro_steps(len(self.packs), self.options)

    def shortened(self, micro_steps: int) -> PackedDataset:
        """The same, with epochs of at most so many micro-steps."""
        options = replace(self.options, max_micro_steps=micro_steps)
        return PackedDataset(
            self.corpus, self.documents, self.packs, options, rank=self.rank, pad_to=self.pad_to, pad_id=self.pad_id
        )

    def plan(self, position: Position) -> EpochPlan:
        """The plan of what is left of an epoch; the latest is kept."""
        if self._plan is None or self._plan[0] != position:
            self._plan = position, plan_epoch(self.packs, position.epoch, self.options, position.packs)
        return self._plan[1]

    def keys(self, position: Position) -> Iterator[Key]:
        """What is left of the epoch of a position."""
        left = micro_steps_left(len(self.packs), position.packs, self.options)
        return (Key(position, micro_step) for micro_step in range(left))

    def micro_steps_done(self, position: Position) -> int:
        """How many of its micro-steps an epoch has behind it at a position."""
        return len(self) - micro_steps_left(len(self.packs), position.packs, self.options)

    def after(self, position: Position, micro_steps: int) -> tuple[Position, int]:
        """The position so many micro-steps later, and how many of them lie behind it, in an optimiser step that is not
        complete."""
        while micro_steps >= (left := micro_steps_left(len(self.packs), position.packs, self.options)):
            micro_steps -= left
            position = Position(position.epoch + 1)
        packs, open_steps = packs_after(len(self.packs), position.packs, micro_steps, self.options)
        return position._replace(packs=packs), open_steps

    def describe(self, position: Position) -> str:
        """A position in words."""
        return f"{position.packs} of {len(self.packs)} packs of epoch {position.epoch}"

    def __getitem__(self, key: Key | int) -> PackedBatch:
        if isinstance(key, int):
            if key < 0:
                raise IndexError(f"keys start at 0, got {key}")
            epoch, micro_step = divmod(key, len(self))
            key = Key(Position(epoch), micro_step)
        plan = self.plan(key.position)
        micro_step = key.micro_step
        index = int(plan.packs[micro_step, self.rank])
        step_targets = int(plan.step_targets[micro_step])
        if index == NO_PACK:
            return collate([], np.empty(0, np.int64), pad_to=self.pad_to, pad_id=self.pad_id, step_targets=step_targets)
        doc, start, length = self.packs[index]
        rows = self.documents[doc]
        begins = self.corpus.offsets[rows] + start
        tokens, targets = self.corpus.tokens, self.corpus.targets
        slices = [slice(begin, begin + size) for begin, size in zip(begins.tolist(), length.tolist(), strict=True)]
        return collate(
            [tokens[piece] for piece in slices],
            rows,
            targets=None if targets is None else [targets[piece] for piece in slices],
            row_length=None if self.packs.row_lengths is None else int(self.packs.row_lengths[index]),
            pad_to=self.pad_to,
            pad_id=self.pad_id,
            step_targets=step_targets,
        )

    def __iter__(self) -> Iterator[PackedBatch]:
        return (self[key] for key in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan": None}


class PlanSampler(DistributedSampler):
    """The keys of an epoch, from a position on.

    A `DistributedSampler`, for that is what Lightning leaves alone, whether or not `use_distributed_sampler` is set:
    the plan has dealt the packs to the ranks already.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        position: Callable[[], Position],
        set_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """position: called whenever an iteration begins; says where. set_epoch: called with what `set_epoch` is called
        with."""
        super().__init__(dataset, num_replicas=dataset.options.world_size, rank=dataset.rank, shuffle=False)
        self._unlimited = num_micro_steps(len(dataset.packs), replace(dataset.options, max_micro_steps=None))
        self._packed = dataset
        self._position = position
        self._set_epoch = set_epoch

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if self._set_epoch is not None:
            self._set_epoch(epoch)

    def __iter__(self) -> Iterator[Key]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._packed.keys(self._position())

    def __len__(self) -> int:
        """Micro-steps that would train on every pack: what Lightning applies `limit_train_batches` to, and what it
        counts against, also after a resume."""
        return self._unlimited


class PackLoader(DataLoader[PackedBatch]):
    """A DataLoader that Lightning recognises as resumable. It has no state: the data module keeps the position, because
    Lightning saves the loader of rank 0 only."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
