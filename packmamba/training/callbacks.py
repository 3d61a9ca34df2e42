"""Callbacks: the progress bar, the predictions' file; and by their older path, the best and the last checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from packmamba.errors import usage_of
from packmamba.training.checkpoints import BestCheckpoint, LastCheckpoint
from packmamba.training.lit import LitHybridLM
from packmamba.training.progress import PackedProgressBar
from packmamba.training.validation import FinalValidation

__all__ = ["BestCheckpoint", "LastCheckpoint", "PackedProgressBar", "PredictionWriter", "default_callbacks"]


class PredictionWriter(Callback):
    """Writes the losses of `predict`, one JSON object a document, to `predictions.jsonl` in the run's folder."""

    def __init__(self, path: str | Path | None = None) -> None:
        """path: where to write instead; `-` for stdout."""
        self.path = None if path is None else Path(path)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitHybridLM)
        assert pl_module.document_losses is not None
        folder = trainer.log_dir or trainer.default_root_dir  # on every rank: reading log_dir is a broadcast
        self._write(self.path or Path(folder) / "predictions.jsonl", pl_module.document_losses.records())

    @rank_zero_only
    def _write(self, path: Path, records: list[dict[str, Any]]) -> None:
        lines = (json.dumps(record) + "\n" for record in records)
        if str(path) == "-":
            sys.stdout.writelines(lines)
            return
        with usage_of("predictions"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as file:
                file.writelines(lines)
        self.path = path
        print(f"predictions: {path} ({len(records)} documents)")


def default_callbacks() -> list[Callback]:
    """The callbacks that `packmamba fit` adds to every run: a progress bar, validation when training ends, `best.ckpt`
    and `last.ckpt`."""
    return [PackedProgressBar(), FinalValidation(), BestCheckpoint(), LastCheckpoint()]
