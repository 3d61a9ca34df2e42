"""Where training stands in its data: read from Lightning's counters, saved, and restored together with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_info

from packmamba.data.loader import PlannedDataset, Position
from packmamba.errors import UsageError


class TrainingProgress:
    """The position of a run, as an origin and the batches that Lightning has trained on since.

    Batches count when they have been trained on; those that workers have prepared do not. A position lies between two
    optimiser steps: what a step has accumulated is in no checkpoint, so a resumed run begins that step again.
    """

    def __init__(self, trainer: Callable[[], Any]) -> None:
        """trainer: gives the Trainer, or None where there is none."""
        self._trainer = trainer
        self._origin = Position()
        self._batches = 0
        self._loaded: dict[str, Any] | None = None
        self.dataset: PlannedDataset | None = None
        """What is trained on, once its loader was made."""

    @property
    def position(self) -> Position:
        """Where training stands."""
        return self._now()[0]

    def seek(self, position: Position) -> None:
        """Training goes on from there."""
        self._origin, self._batches = position, self._trained_batches()

    def reset(self) -> bool:
        """Forgets the run before, unless this one goes on where it stopped; whether it did."""
        if self._trainer() is None or self._trained_batches():
            return False
        self._origin, self._batches, self._loaded = Position(), 0, None
        return True

    def state_dict(self) -> dict[str, Any]:
        """The position, the batches that Lightning counts up to it, and who has trained on them."""
        assert self.dataset is not None, "there is no position before train_dataloader() was called"
        position, open_steps = self._now()
        options = self.dataset.options
        return position._asdict() | {
            "batches": self._trained_batches() - open_steps,
            "world_size": options.world_size,
            "accumulate_grad_batches": options.accumulation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._origin = Position(state["epoch"], state["section"], state["packs"])
        self._batches = state["batches"]
        self._loaded = state

    def start(self) -> Position:
        """The position from which an iteration over the training loader starts.

        Lightning's epoch number is not enough to tell: it moves on when `max_steps` ends a run in the middle of an
        epoch, and the iterator of a resumed run is made before Lightning sets the sampler's epoch.
        """
        if not self._fitting():
            return self._origin
        if self._loaded is not None:
            self._align(self._loaded)
            self._loaded = None
            return self.position
        position = self.position
        if position[1:] != (0, 0) and self._counter().current.processed == 0:
            self.seek(Position(position.epoch + 1))  # Lightning begins a new epoch: the last one was ended early
        return self.position

    def set_epoch(self, epoch: int) -> None:
        """What a loop without a Trainer calls before each epoch."""
        if not self._fitting() and epoch != self._origin.epoch:
            self.seek(Position(epoch))

    def _now(self) -> tuple[Position, int]:
        if self._trainer() is None or self.dataset is None:
            return self._origin, 0
        return self.dataset.after(self._origin, self._trained_batches() - self._batches)

    def _align(self, state: dict[str, Any]) -> None:
        """Sets Lightning's counters of a restored run to the position: they stand elsewhere where the checkpoint was
        saved in the middle of an optimiser step, or by another number of ranks."""
        assert self.dataset is not None
        before = state["world_size"], state["accumulate_grad_batches"]
        now = self.dataset.options.world_size, self.dataset.options.accumulation
        if before != now and self._origin.packs:
            rank_zero_info(
                f"{before[0]} ranks x accumulate_grad_batches {before[1]} have trained on "
                f"{self.dataset.describe(self._origin)}; {now[0]} x {now[1]} share the others"
            )
        counted = self._counter().current.processed
        open_steps = self._trained_batches() - self._batches
        epoch, (self._origin, _) = self._origin.epoch, self.dataset.after(self._origin, 0)
        last = self._counter().is_last_batch and not open_steps
        if counted and (last or self._origin.epoch > epoch):
            if self._origin != Position(self._origin.epoch):
                self._origin = Position(self._origin.epoch + 1)  # the stream has ended, which its sections do not tell
            _begin_next_epoch(self._trainer(), self._batches)
        elif counted != (done := self.dataset.micro_steps_done(self._origin, counted - open_steps)):
            _set_batches(self._trainer(), done, self._batches)

    def _counter(self) -> Any:
        return self._trainer().fit_loop.epoch_loop.batch_progress

    def _trained_batches(self) -> int:
        """Batches that Lightning has trained on since the run began, resumed ones included. Counts the batch at hand in
        `on_train_batch_end`, where checkpoints are saved, which its `completed` does not yet."""
        return 0 if self._trainer() is None else self._counter().total.processed

    def _fitting(self) -> bool:
        state = None if self._trainer() is None else self._trainer().state
        return state is not None and state.fn == TrainerFn.FITTING and state.status == TrainerStatus.RUNNING


# Lightning restores its counters before it asks for the first batch, and reads them after; in between, they can be set.


def _set_batches(trainer: Any, current: int, total: int) -> None:
    """As if a checkpoint had been saved after so many batches of this epoch (`current`) and of the run (`total`)."""
    loop = trainer.fit_loop.epoch_loop
    for counter, value in ((loop.batch_progress.current, current), (loop.batch_progress.total, total)):
        counter.ready = counter.started = counter.processed = counter.completed = value
    loop.batch_progress.is_last_batch = False
    loop._batches_that_stepped = trainer.global_step


def _begin_next_epoch(trainer: Any, total: int) -> None:
    """As if the epoch of the checkpoint had been completed in this process.

    Lightning tells how far the end of an epoch had been processed by comparing the counters with the number of batches,
    which a stream does not have, and another number of ranks has changed.
    """
    fit_loop = trainer.fit_loop
    _set_batches(trainer, 0, total)
    for counter in (fit_loop.epoch_progress.current, fit_loop.epoch_progress.total):
        counter.started = counter.processed = counter.completed = counter.ready
    fit_loop._restarting = False  # the property would set it again where `max_steps` is given
    fit_loop.epoch_loop.restarting = False


def check_trainer(trainer: Any, world_size: int, *, streamed: bool) -> None:
    """Raises ValueError for options of a Trainer that leave the number of targets of a step unknown."""
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


def require_same(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Raises ValueError naming what is not as it was when a checkpoint was saved."""
    changed = [
        f"{name} was {saved.get(name)!r} and is {current.get(name)!r}"
        for name in saved | current
        if saved.get(name) != current.get(name)
    ]
    if changed:
        raise UsageError(
            f"cannot resume where the checkpoint stopped, because the data would come in another order: "
            f"{'; '.join(changed)}. Restore them, or start a new run from the checkpoint's weights"
        )
