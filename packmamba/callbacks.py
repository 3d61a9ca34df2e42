"""`packmamba.training.callbacks`, by its older path."""

from packmamba.training.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    PackedProgressBar,
    PredictionWriter,
    default_callbacks,
)

__all__ = ["BestCheckpoint", "LastCheckpoint", "PackedProgressBar", "PredictionWriter", "default_callbacks"]
