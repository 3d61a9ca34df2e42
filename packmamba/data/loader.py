"""Packs as a dataset that any number of loader workers can index, and the sampler that walks through it.

The key of a batch is one integer: epoch · M + micro-step, where M is the number of micro-steps of an epoch. What lies
behind a key is a pure function of it, so workers hold no position, and a position is a number to start from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from packmamba.data.collate import collate
from packmamba.data.corpus import Corpus
from packmamba.data.packers import Packs
from packmamba.data.plan import NO_PACK, EpochPlan, PlanOptions, num_micro_steps, plan_epoch
from packmamba.packing import PackedBatch


class PackedDataset(Dataset[PackedBatch]):
    """The batches of one rank: `dataset[key]`, with key = epoch · len(dataset) + micro-step.

    A sequence of the first epoch's batches, to those who know nothing of epochs.
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
        self._plan: tuple[int, EpochPlan] | None = None

    def __len__(self) -> int:
        """M, the micro-steps of an epoch."""
        return num_micro_steps(len(self.packs), self.options)

    def shortened(self, micro_steps: int) -> PackedDataset:
        """The same, with epochs of at most so many micro-steps."""
        options = replace(self.options, max_micro_steps=micro_steps)
        return PackedDataset(
            self.corpus, self.documents, self.packs, options, rank=self.rank, pad_to=self.pad_to, pad_id=self.pad_id
        )

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; the latest is kept."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, plan_epoch(self.packs, epoch, self.options)
        return self._plan[1]

    def __getitem__(self, key: int) -> PackedBatch:
        if key < 0:
            raise IndexError(f"keys start at 0, got {key}")
        epoch, micro_step = divmod(key, len(self))
        plan = self.plan(epoch)
        index = int(plan.packs[micro_step, self.rank])
        step_targets = int(plan.step_targets[micro_step])
        if index == NO_PACK:
            return collate([], np.empty(0, np.int64), pad_to=self.pad_to, pad_id=self.pad_id, step_targets=step_targets)
        doc, start, length = self.packs[index]
        rows = self.documents[doc]
        begins = self.corpus.offsets[rows] + start
        tokens = self.corpus.tokens
        return collate(
            [tokens[begin : begin + size] for begin, size in zip(begins.tolist(), length.tolist(), strict=True)],
            rows,
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
        position: Callable[[], tuple[int, int]],
        set_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """position: called whenever an iteration begins; gives the epoch and the micro-steps of it that are done.
        set_epoch: called with what `set_epoch` is called with."""
        super().__init__(dataset, num_replicas=dataset.options.world_size, rank=dataset.rank, shuffle=False)
        self._steps = len(dataset)
        self._unlimited = num_micro_steps(len(dataset.packs), replace(dataset.options, max_micro_steps=None))
        self._position = position
        self._set_epoch = set_epoch

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if self._set_epoch is not None:
            self._set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        epoch, done = self._position()
        return iter(range(epoch * self._steps + done, (epoch + 1) * self._steps))

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
