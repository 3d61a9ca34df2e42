"""The tokens of the data have to be among those of the model."""

from __future__ import annotations

from packmamba.config import ModelConfig
from packmamba.errors import UsageError


def require_vocabulary(vocab_size: int | None, config: ModelConfig) -> None:
    """Raises UsageError if the data's vocabulary is larger than the model's. vocab_size: the data's; None: unknown."""
    if vocab_size is not None and vocab_size > config.vocab_size:
        raise UsageError(
            f"the data's vocabulary has {vocab_size} tokens, but the model's vocab_size is "
            f"{config.vocab_size}; set model.config.vocab_size to {vocab_size} or more"
        )
