"""Validation when training ends, so that the weights it leaves are among those that were validated."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from packmamba.training.lightning_compat import count_logged_step, training_ends, validate_now


class FinalValidation(Callback):
    """Validates when training ends, unless the last step was just validated.

    Lightning validates after every `val_check_interval` batches and at no other time, so that a run whose last step is
    no such batch ends without, and a run shorter than that never has any, nor a `best.ckpt`. Nothing happens where
    there is no validation (`limit_val_batches: 0`), nor where training is interrupted or fails.
    """

    def __init__(self) -> None:
        self._validated: int | None = None
        """The optimiser step whose weights were validated last."""
        self._running = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validated = trainer.global_step
        if self._running:  # the metrics are logged; checkpoints, which come next, save the number of steps as it is
            self._running = False
            count_logged_step(trainer, 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before the checkpoints of an epoch's end, which Lightning has saved after all other callbacks are done.
        if not (trainer.enable_validation and training_ends(trainer)) or self._validated == trainer.global_step:
            return
        self._running = True
        count_logged_step(trainer, -1)  # to the step that has been taken last, as after a batch
        validate_now(trainer)
        if self._running:  # there were no documents to validate on
            self._running = False
            count_logged_step(trainer, 1)
