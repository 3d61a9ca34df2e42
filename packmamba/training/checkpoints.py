"""The checkpoints of a run: `last.ckpt`, which follows training and outlives its end, and `best.ckpt`."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from packmamba.errors import UsageError
from packmamba.training.checkpoint_files import AtomicCheckpointIO
from packmamba.training.lightning_compat import (
    agreed_maximum,
    can_save_alone,
    is_fitting,
    loops_before_validation,
    loops_of,
    save_checkpoint_now,
    save_checkpoint_with,
)
from packmamba.training.stopping import NAMES, StopSignals, exception_of

_SAVE_IS_DUE = 1
"""Below every signal's number among the things that ranks agree on."""


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`: the newest state, written after every validation, every so many steps and minutes, and when training
    ends: at its last step, by Ctrl-C, SIGTERM or SIGUSR1, or by an exception.

    Lightning's `save_last` writes only where another checkpoint was written too, so that with a monitored metric the
    last steps of a run that does not improve are lost.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        save_on_exception: bool = True,
        filename: str = "last",
        every_minutes: float | None = 15.0,
        keep: int = 2,
    ) -> None:
        """The newest checkpoint of a run, and those before it, in the run's folder.

        Args:
            every_n_train_steps: Write it every so many optimiser steps, instead of after every validation.
            save_on_exception: Write it also when Ctrl-C, SIGTERM, SIGUSR1 or an exception ends training.
            filename: Its name, without `.ckpt`.
            every_minutes: Write it also so many minutes after it was last written; null: only when the other options
                say so.
            keep: Files to keep: `last.ckpt`, before it `last-1.ckpt`, and so on.

        Raises UsageError for a number out of range.
        """
        super().__init__(
            filename=filename, every_n_train_steps=every_n_train_steps, save_on_exception=save_on_exception
        )
        if every_minutes is not None and not 0 < every_minutes < math.inf:
            raise UsageError(f"last_checkpoint.every_minutes must be more than 0, or null, got {every_minutes}")
        if keep < 1:
            raise UsageError(f"last_checkpoint.keep must be 1 or more, got {keep}")
        self.every_minutes = every_minutes
        self.keep = keep
        self.stopped_with: str | None = None
        """After training has been stopped: the checkpoint to go on from; None where there is none yet."""
        self._signals = StopSignals()
        self._listens = False  # to signals, which one of several callbacks of this class does
        self._saved_at = 0.0
        self._first_step = 0  # of this process
        self._batch_end: tuple[int, dict[str, Any]] | None = None  # the step and Lightning's counters at its end
        self._in_optimizer_step = False
        self._in_validation = False
        self._is_due = False
        self._agreed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        use_atomic_files(trainer)
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.world_size > 1:
            path = trainer.strategy.broadcast(str(trainer.ckpt_path))
            if agreed_maximum(trainer, int(path != str(trainer.ckpt_path))):
                raise UsageError(
                    f"the ranks do not go on from the same checkpoint; rank 0 does from {path}: name it by --ckpt_path"
                )

    @property
    def stop_signal(self) -> int:
        """The signal that training was told to stop by, or 0."""
        return self._signals.received

    # Where training stands

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first = next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint))
        self._listens = first is self and self.save_on_exception
        if self._listens:
            self._signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._first_step = trainer.global_step
        self._batch_end, self._in_optimizer_step, self._in_validation = None, False, False
        self.stopped_with = None
        if self._listens:
            self._signals.defer(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._heed(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._in_optimizer_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = self._in_optimizer_step
        self._in_optimizer_step = False
        self._batch_end = trainer.global_step, loops_of(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if stepped and self._is_due:
            save_checkpoint_now(self, trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_validation = is_fitting(trainer) and not trainer.sanity_checking

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._in_validation:
            self._heed(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_validation = False

    def _heed(self, trainer: Trainer) -> None:
        """Stops for a signal that this or another rank has received, and notes whether a checkpoint is due."""
        minutes = (time.monotonic() - self._saved_at) / 60
        wanted = self._signals.received if self._listens else 0
        if not wanted and self.every_minutes is not None and minutes >= self.every_minutes:
            wanted = _SAVE_IS_DUE
        wanted = agreed_maximum(trainer, wanted)
        self._is_due = wanted == _SAVE_IS_DUE
        if wanted > _SAVE_IS_DUE:
            self._agreed = True
            raise exception_of(wanted)

    # Saving

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("dirpath") == self.dirpath:  # else the earlier file is another run's, which is left alone
            super().load_state_dict(state_dict)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._keep_files(trainer, filepath)
        super()._save_checkpoint(trainer, filepath)
        self._saved_at, self._is_due = time.monotonic(), False

    def _keep_files(self, trainer: Trainer, filepath: str) -> None:
        files = trainer.strategy.checkpoint_io
        files = getattr(files, "checkpoint_io", files)  # inside of one that writes in the background
        if isinstance(files, AtomicCheckpointIO):
            files.kept[str(filepath)] = self.keep

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save_checkpoint_now(self, trainer)
        self._signals.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves where training stands, unless what the exception says makes the state worthless, or the weights are
        between two steps. On several ranks, rank 0 saves alone where the others do not know of the exception."""
        agreed, self._agreed = self._agreed, False
        try:
            if self._began(trainer) and self.save_on_exception:
                self._signals.ignore()
                self._save_at_stop(trainer, exception, agreed=agreed)
        finally:
            self._signals.restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._signals.restore()

    def _began(self, trainer: Trainer) -> bool:
        """Whether there is anything to save: an optimiser step taken by this process."""
        return (
            self._batch_end is not None
            and trainer.global_step > self._first_step
            and not getattr(trainer, "fast_dev_run", False)
        )

    def _save_at_stop(self, trainer: Trainer, exception: BaseException, *, agreed: bool) -> None:
        assert self._batch_end is not None
        self.stopped_with = self._last_checkpoint_saved or None
        step, loops = self._batch_end
        why = f"stopped by {NAMES.get(self.stop_signal) or _in_words(exception)}"
        if isinstance(exception, UsageError):
            return  # a loss that is not a number, or a full disk: its message says what to do
        if self._in_optimizer_step or step != trainer.global_step:
            self._say(trainer, f"{why} in the middle of an optimiser step, whose weights are not saved")
        elif self._last_global_step_saved == trainer.global_step:
            self._say(trainer, f"{why} after optimiser step {step:,}, which is saved: {self.stopped_with}")
        elif agreed or trainer.world_size == 1 or can_save_alone(trainer):
            if self._in_validation:
                loops = loops_before_validation(trainer)
            path = self._path(trainer)
            self._keep_files(trainer, path)
            previous, self.best_model_path = self.best_model_path, path  # part of what is saved
            try:
                save_checkpoint_with(trainer, path, loops, swapped=self._in_validation, together=agreed)
            except Exception as error:  # the exception at hand is the one to see
                self.best_model_path = previous
                self._say(trainer, f"{why} after optimiser step {step:,}, which could not be saved: {error}")
            else:
                self._last_global_step_saved, self._last_checkpoint_saved = step, path
                self.stopped_with = path
                self._say(trainer, f"{why} after optimiser step {step:,}, saved: {path}")

    def _path(self, trainer: Trainer) -> str:
        assert self.dirpath is not None
        if self.best_model_path and Path(self.best_model_path).parent == Path(self.dirpath):
            return self.best_model_path
        return self.format_checkpoint_name(self._monitor_candidates(trainer))

    @staticmethod
    def _say(trainer: Trainer, message: str) -> None:
        if trainer.is_global_zero:
            print(message, file=sys.stderr)


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the state with the lowest validation loss so far."""

    def __init__(self, monitor: str = "val/loss", filename: str = "best") -> None:
        """A checkpoint of the best validation so far, in the run's folder; a validation whose number is not finite is
        never the best.

        Args:
            monitor: The logged number that is best when lowest.
            filename: Its name, without `.ckpt`.
        """
        super().__init__(filename=filename, monitor=monitor)
        self._said = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        use_atomic_files(trainer)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run, whose folder is another one, goes on comparing with the best of the run before it, while that
        file is there."""
        best, score = state_dict.get("best_model_path"), state_dict.get("best_model_score")
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)
        elif best and score is not None and torch.isfinite(score) and Path(best).exists():
            self.best_model_path = self.kth_best_model_path = best
            self.best_model_score = self.kth_value = score
            self.best_k_models = {best: score}

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        if current is not None and not trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(current).all())):
            if not self._said:
                rank_zero_warn(
                    f"{self.monitor} is {float(current)} at optimiser step {trainer.global_step}: "
                    f"{self.filename}{self.FILE_EXTENSION} stays what it was"
                )
                self._said = True
            return False
        return super().check_monitor_top_k(trainer, current)


def use_atomic_files(trainer: Trainer) -> None:
    """Has a Trainer write checkpoints as `AtomicCheckpointIO` does, unless it was given a way of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def _in_words(exception: BaseException) -> str:
    return "Ctrl-C" if isinstance(exception, KeyboardInterrupt) else type(exception).__name__
