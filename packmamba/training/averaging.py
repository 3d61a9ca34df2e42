"""An exponential moving average of the weights: Lightning's callback, so that a finished run can be resumed too."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    """Keeps an average of the weights, which validation uses and checkpoints hold; training goes on with its own.

    In a checkpoint `state_dict` is the average, for `validate`, `test` and `predict`; a resumed run with this callback
    goes on from the weights beside it.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1, update_starting_at_step: int = 0) -> None:
        """An average of the weights over about 1 / (1 - decay) updates.

        Args:
            decay: The part of the average that stays at an update; the rest comes from the weights.
            update_every_n_steps: Optimiser steps from one update to the next.
            update_starting_at_step: The optimiser step of the first update; until then the average is the
                initial weights.
        """
        super().__init__(
            decay=decay, update_every_n_steps=update_every_n_steps, update_starting_at_step=update_starting_at_step
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: Lightning's class replaces the weights here, just before the last checkpoint is saved, which then
        holds the average twice."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model that training leaves is the average."""
        super().on_train_end(trainer, pl_module)
