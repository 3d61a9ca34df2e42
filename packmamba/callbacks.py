"""The callbacks of `packmamba.training`, by their shorter and older path."""

from packmamba.training.averaging import EMA
from packmamba.training.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    PackedProgressBar,
    PredictionWriter,
    default_callbacks,
)

__all__ = ["EMA", "BestCheckpoint", "LastCheckpoint", "PackedProgressBar", "PredictionWriter", "default_callbacks"]
