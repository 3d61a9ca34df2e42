"""Where training stands in its data: read from Lightning's counters, saved, and restored together with them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info

from packmamba.data.loader import PlannedDataset, PlanSampler
from packmamba.data.options import DataOptions
from packmamba.data.plan import accumulation_for
from packmamba.data.position import Origin, Position
from packmamba.errors import UsageError
from packmamba.training.lightning_compat import (
    at_last_batch,
    batches_of_epoch,
    batches_trained,
    begin_next_epoch,
    is_fitting,
    set_batches,
)


class TrainingProgress:
    """The position of a run in a dataset: an origin, and the batches that Lightning has trained on since.

    Batches count when they have been trained on; those that workers have prepared do not. A position lies between two
    optimiser steps: accumulated gradients are in no checkpoint, so a resumed run begins their step again.
    """

    def __init__(self, dataset: PlannedDataset, origin: Origin, trainer: Any) -> None:
        """origin: moved when the run goes on elsewhere. trainer: the Trainer that counts, or None."""
        self.dataset = dataset
        self._origin = origin
        self._trainer = trainer

    @property
    def position(self) -> Position:
        """Where training stands."""
        return self._now()[0]

    def state_dict(self) -> dict[str, Any]:
        """The position, the batches that Lightning counts up to it, and who has trained on them."""
        position, open_steps = self._now()
        options = self.dataset.options
        return position._asdict() | {
            "batches": batches_trained(self._trainer) - open_steps,
            "world_size": options.world_size,
            "accumulate_grad_batches": options.accumulation,
        }

    def start(self) -> Position:
        """The position from which an iteration over the training loader starts.

        Lightning's epoch number is not enough to tell: it moves on when `max_steps` ends a run in the middle of an
        epoch, and the iterator of a resumed run is made before Lightning sets the sampler's epoch.
        """
        if not is_fitting(self._trainer):
            return self._origin.position
        if self._origin.restored is not None:
            self._align(self._origin.restored)
            self._origin.restored = None
            return self.position
        position = self.position
        if position[1:] != (0, 0) and batches_of_epoch(self._trainer) == 0:
            # Lightning begins a new epoch: the last one was ended early.
            move(self._origin, Position(position.epoch + 1), self._trainer)
        return self.position

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch; nothing while a Trainer is fitting, whose counters tell."""
        if not is_fitting(self._trainer) and epoch != self._origin.position.epoch:
            move(self._origin, Position(epoch), self._trainer)

    def _now(self) -> tuple[Position, int]:
        if self._trainer is None:
            return self._origin.position, 0
        return self.dataset.after(self._origin.position, batches_trained(self._trainer) - self._origin.batches)

    def _align(self, state: dict[str, Any]) -> None:
        """Sets Lightning's counters of a restored run to the position: they stand elsewhere where the checkpoint was
        saved in the middle of an optimiser step, or by another number of ranks."""
        origin, trainer = self._origin, self._trainer
        before = state["world_size"], state["accumulate_grad_batches"]
        now = self.dataset.options.world_size, self.dataset.options.accumulation
        if before != now and origin.position.packs:
            rank_zero_info(
                f"{before[0]} ranks x accumulate_grad_batches {before[1]} have trained on "
                f"{self.dataset.describe(origin.position)}; {now[0]} x {now[1]} share the others"
            )
        counted = batches_of_epoch(trainer)
        open_steps = batches_trained(trainer) - origin.batches
        epoch, (origin.position, _) = origin.position.epoch, self.dataset.after(origin.position, 0)
        last = at_last_batch(trainer) and not open_steps
        if counted and (last or origin.position.epoch > epoch):
            if origin.position != Position(origin.position.epoch):
                # The stream has ended, which its sections do not tell.
                origin.position = Position(origin.position.epoch + 1)
            begin_next_epoch(trainer, origin.batches)
        elif counted != (done := self.dataset.micro_steps_done(origin.position, counted - open_steps)):
            set_batches(trainer, done, origin.batches)


class TrainingSampler(PlanSampler):
    """The keys of training, from where a run stands."""

    def __init__(self, progress: TrainingProgress) -> None:
        super().__init__(progress.dataset)
        self._progress = progress

    def start(self) -> Position:
        return self._progress.start()

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._progress.set_epoch(epoch)


def move(origin: Origin, position: Position, trainer: Any) -> None:
    """Has a run go on from a position."""
    origin.position, origin.batches = position, batches_trained(trainer)


def accumulate(trainer: Any, options: DataOptions, world_size: int) -> None:
    """Sets the Trainer's accumulate_grad_batches as `tokens_per_step` asks for it, and says so. Raises UsageError if
    the Trainer has been given another number, or if nothing comes near."""
    tokens, capacity = options.handling.tokens_per_step, options.packs.capacity
    if tokens is None:
        return
    accumulation, given = accumulation_for(tokens, capacity, world_size), trainer.accumulate_grad_batches
    if given not in (1, accumulation):
        raise UsageError(
            f"trainer.accumulate_grad_batches {given} and data.tokens_per_step {tokens:,} both say how large an "
            "optimiser step is; leave one out"
        )
    trainer.accumulate_grad_batches = accumulation
    rank_zero_info(
        f"tokens_per_step {tokens:,}: accumulate_grad_batches {accumulation} x {world_size} ranks x capacity "
        f"{capacity:,} are {accumulation * world_size * capacity:,} tokens a step where packs are full"
    )


def count_validation_over_epochs(trainer: Any, batches: int | None, say: bool) -> None:
    """Makes a `val_check_interval` of more batches than an epoch has possible, and says so. batches: of an epoch; None
    for a stream, whose epochs may turn out shorter. say: whether there is something to validate on.

    Lightning would refuse it, or, for a stream, never validate, because it counts the batches of each epoch anew.
    """
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if not isinstance(interval, int) or every is None or not trainer.limit_val_batches:
        return
    if batches is None:
        if every == 1:
            trainer.check_val_every_n_epoch = None
        return
    if interval <= batches:
        return
    if every == 1:
        trainer.check_val_every_n_epoch = None
        now = f"batches are counted over epochs, validation comes after every {interval:,}"
    else:
        trainer.val_check_interval = 1.0
        now = f"validation comes at the end of every epoch whose number check_val_every_n_epoch {every} divides"
    if say:
        rank_zero_info(
            f"trainer.val_check_interval {interval:,} is more than the {batches:,} batches of an epoch: {now}"
        )


def check_trainer(trainer: Any, world_size: int, *, streamed: bool) -> None:
    """Raises UsageError for options of a Trainer that leave the number of targets of a step unknown."""
    accumulation, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        raise UsageError(
            "GradientAccumulationScheduler changes how many batches a step has while packs are planned ahead; "
            "set Trainer(accumulate_grad_batches=...) instead"
        )
    if trainer.overfit_batches and (world_size > 1 or streamed):
        raise UsageError(
            f"overfit_batches={trainer.overfit_batches} replaces the plan's sampler, which a streamed source and "
            "several ranks need; use one rank and no stream, or limit_train_batches with shuffle=False"
        )
    for name in ("limit_train_batches", "val_check_interval"):
        value = getattr(trainer, name)
        if streamed and isinstance(value, float) and value != 1.0:
            raise UsageError(
                f"{name}={value} is a part of an epoch, and how long an epoch of a streamed source is, is not known; "
                "set a number of batches, or 1.0"
            )
    if streamed and isinstance(limit, int) and limit % accumulation:
        raise UsageError(
            f"limit_train_batches={limit} ends an epoch of a streamed source in the middle of a step of "
            f"accumulate_grad_batches={accumulation}; set a multiple of it, or max_steps instead"
        )
