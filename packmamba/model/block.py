"""One pre-norm residual layer: x + mixer(norm(x))."""

from __future__ import annotations

from torch import Tensor, nn

from packmamba.config import ComputeOptions, LayerConfig, ModelConfig
from packmamba.model.layers import RMSNorm
from packmamba.model.mixers import MixerState, build_mixer
from packmamba.packing import Packing


class ResidualBlock(nn.Module):
    """x (T, d_model) -> (T, d_model) in x's dtype. layer: an entry of `config.layers`."""

    def __init__(self, layer: LayerConfig, config: ModelConfig, compute: ComputeOptions) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = build_mixer(layer, config, compute)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        return x + self.mixer(self.norm(x), packing)

    def advance(self, x: Tensor, packing: Packing, state: MixerState | None) -> tuple[Tensor, MixerState | None]:
        """As `Mixer.advance`."""
        mixed, state = self.mixer.advance(self.norm(x), packing, state)
        return x + mixed, state
