"""What mixes a layer's tokens or channels: one file a kind, and the one table that says which.

mixer: the module inside a layer. state: what a mixer keeps of a document's earlier tokens, to go on from there.
advance: to map the next tokens of each document, given the state.
"""

from __future__ import annotations

from collections.abc import Callable

from packmamba.config import AttentionConfig, ComputeOptions, LayerConfig, Mamba1Config, MLPConfig, ModelConfig
from packmamba.errors import UsageError
from packmamba.model.mixers.attention import AttentionMixer
from packmamba.model.mixers.base import Mixer, MixerState
from packmamba.model.mixers.mamba1 import Mamba1Mixer
from packmamba.model.mixers.mlp import GatedMLP

__all__ = ["MIXERS", "Mixer", "MixerState", "build_mixer"]

MIXERS: dict[type[LayerConfig], Callable[..., Mixer]] = {
    Mamba1Config: Mamba1Mixer,
    AttentionConfig: AttentionMixer,
    MLPConfig: GatedMLP,
}
"""The mixer of each kind of layer."""


def build_mixer(layer: LayerConfig, config: ModelConfig, compute: ComputeOptions) -> Mixer:
    """The mixer of an entry of `config.layers`. Raises UsageError for a class of layer that has none."""
    if type(layer) not in MIXERS:
        available = ", ".join(cls.__name__ for cls in MIXERS)
        raise UsageError(f"no mixer for a layer of class {type(layer).__name__}; available: {available}")
    return MIXERS[type(layer)](layer, config, compute)
