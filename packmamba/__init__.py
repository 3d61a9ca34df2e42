"""Packed-sequence training for Mamba and hybrid Mamba/attention language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packmamba.config import ModelConfig
    from packmamba.model.hybrid_lm import HybridLM
    from packmamba.packing import PackedBatch, Packing

__version__ = "0.1.0"

__all__ = ["HybridLM", "ModelConfig", "PackedBatch", "Packing", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that `packmamba --help` does not wait for torch.
    if name == "ModelConfig":
        from packmamba.config import ModelConfig

        return ModelConfig
    if name == "HybridLM":
        from packmamba.model.hybrid_lm import HybridLM

        return HybridLM
    if name in ("PackedBatch", "Packing"):
        from packmamba import packing

        return getattr(packing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
