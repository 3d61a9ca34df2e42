"""The gated MLP, SwiGLU (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from packmamba.config import ComputeOptions, MLPConfig, ModelConfig
from packmamba.model.layers import Projection
from packmamba.model.mixers.base import Mixer
from packmamba.packing import Packing


class GatedMLP(Mixer):
    """x (T, d_model) -> (T, d_model): fc2(up · silu(gate)), where fc1 makes up and gate, in this order."""

    def __init__(self, layer: MLPConfig, config: ModelConfig, compute: ComputeOptions) -> None:
        super().__init__()
        (width,) = layer.sizes("d_ff")
        self.fc1 = Projection(config.d_model, 2 * width)
        self.fc2 = Projection(width, config.d_model, residual_layers=len(config.layers))

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Works on each token alone: the packing is taken so that every mixer has one signature."""
        up, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(up * F.silu(gate))

    def advance(self, x: Tensor, packing: Packing, state: None) -> tuple[Tensor, None]:
        return self(x, packing), None
