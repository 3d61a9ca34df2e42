"""One pre-norm residual layer: x + mixer(norm(x))."""

from __future__ import annotations

from torch import Tensor, nn

from packmamba.config import ModelConfig
from packmamba.model.layers import RMSNorm
from packmamba.model.mixers.attention import AttentionMixer
from packmamba.model.mixers.mamba1 import Mamba1Mixer
from packmamba.model.mixers.mlp import GatedMLP
from packmamba.packing import Packing


class ResidualBlock(nn.Module):
    """x (T, d_model) -> (T, d_model) in x's dtype. kind: a value of `config.LAYER_KINDS`."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = _build_mixer(config, kind)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        return x + self.mixer(self.norm(x), packing)


def _build_mixer(config: ModelConfig, kind: str) -> nn.Module:
    if kind == "mamba1":
        return Mamba1Mixer(config)
    if kind == "attention":
        return AttentionMixer(config)
    if kind == "mlp":
        return GatedMLP(config)
    raise ValueError(f"unknown layer kind {kind!r}")
