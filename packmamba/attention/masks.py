"""Which keys of its document a query sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from packmamba.errors import UsageError
from packmamba.visible_pairs import visible_pairs


@dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """Causal: a token sees itself and earlier tokens of its document, at most `sliding_window` of them.

    Raises UsageError for a window smaller than 1.
    """

    sliding_window: int | None = None
    """Tokens that a token sees, itself included; None: all of its document so far."""

    def __post_init__(self) -> None:
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UsageError(f"sliding_window must be at least 1 (a token sees itself), got {self.sliding_window}")

    def visible_pairs(self, lengths: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 (S,): the (query, key) pairs of documents of these lengths (tokens)."""
        return visible_pairs(np.asarray(lengths), self.sliding_window)

    def hides_nothing_before(self, num_keys: int) -> bool:
        """Whether the last of num_keys tokens sees all of them."""
        return self.sliding_window is None or self.sliding_window >= num_keys

    def dense(self, num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
        """bool (num_queries, num_keys), True where a query sees a key; the queries are the last tokens of the keys."""
        query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        key = torch.arange(num_keys, device=device)
        visible = key <= query
        return visible if self.sliding_window is None else visible & (key > query - self.sliding_window)

    def flash_window(self) -> tuple[int, int]:
        """(left, right) as flash attention counts them: tokens besides oneself; -1 is no limit."""
        return (-1 if self.sliding_window is None else self.sliding_window - 1, 0)
