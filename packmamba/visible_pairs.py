"""The (query, key) pairs that causal attention computes inside documents: counted here, nowhere else. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from packmamba.errors import UsageError


def visible_pairs(lengths: np.ndarray, sliding_window: int | None = None) -> np.ndarray:
    """int64 (S,): Σ_t min(t + 1, window) for documents of these lengths (tokens).

    sliding_window: tokens of its document, itself included, that a token sees; None: all before it.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    window = lengths if sliding_window is None else np.minimum(lengths, sliding_window)
    return window * (window + 1) // 2 + (lengths - window) * window


@dataclass(frozen=True, kw_only=True)
class AttentionCost:
    """What the attention layers with one window cost beside everything else in a model.

    Raises UsageError for a cost that is negative or not finite, or a window below 1.
    """

    cost: float
    """FLOPs of one (query, key) pair, summed over these layers, ÷ FLOPs of one token everywhere else in the model."""
    window: int | None = None
    """Tokens of its document, itself included, that a token sees; null: all before it."""

    def __post_init__(self) -> None:
        if not 0 <= self.cost < float("inf"):
            raise UsageError(f"AttentionCost.cost must be at least 0 and finite, got {self.cost}")
        if self.window is not None and self.window < 1:
            raise UsageError(f"AttentionCost.window must be at least 1, got {self.window}")
