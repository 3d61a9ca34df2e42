"""Callbacks: the progress bar, the predictions' file; and by their older path, the best and the last checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from packmamba.training.checkpoints import BestCheckpoint, LastCheckpoint
from packmamba.training.lightning_compat import StepProgressBar
from packmamba.training.lit import LitHybridLM
from packmamba.training.validation import FinalValidation

__all__ = ["BestCheckpoint", "LastCheckpoint", "PackedProgressBar", "PredictionWriter", "default_callbacks"]

SHOWN = {"train/loss": "loss", "val/loss": "val loss", "test/loss": "test loss", "tokens_per_second": "tokens/s"}
"""Labels of the progress bar, by the names of the numbers in the log."""


class PackedProgressBar(StepProgressBar):
    """Lightning's rich progress bar with the loss and real tokens/s, as they were last logged."""

    def __init__(self, refresh_rate: int = 4, leave: bool = False) -> None:
        """refresh_rate: redraws a second. leave: whether a finished bar stays on the screen."""
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._shown: dict[str, int | str | float | dict[str, float]] = {}

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        logged = trainer.progress_bar_metrics
        self._shown = {
            label: f"{logged[name]:,.0f}" if label == "tokens/s" else f"{logged[name]:.3f}"
            for name, label in SHOWN.items()
            if name in logged
        }
        return self._shown


class PredictionWriter(Callback):
    """Writes the losses of `predict`, one JSON object a document, to `predictions.jsonl` in the run's folder."""

    def __init__(self, path: str | Path | None = None) -> None:
        """path: where to write instead."""
        self.path = None if path is None else Path(path)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitHybridLM)
        assert pl_module.document_losses is not None
        folder = trainer.log_dir or trainer.default_root_dir  # on every rank: reading log_dir is a broadcast
        self._write(self.path or Path(folder) / "predictions.jsonl", pl_module.document_losses.records())

    @rank_zero_only
    def _write(self, path: Path, records: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        self.path = path
        print(f"predictions: {path} ({len(records)} documents)")


def default_callbacks() -> list[Callback]:
    """The callbacks that `packmamba fit` adds to every run: a progress bar, validation when training ends, `best.ckpt`
    and `last.ckpt`."""
    return [PackedProgressBar(), FinalValidation(), BestCheckpoint(), LastCheckpoint()]
