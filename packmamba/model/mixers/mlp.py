"""The gated MLP, SwiGLU (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from packmamba.config import ModelConfig
from packmamba.model.layers import Projection
from packmamba.packing import Packing


class GatedMLP(nn.Module):
    """x (T, d_model) -> (T, d_model): fc2(up · silu(gate)), where fc1 makes up and gate, in this order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = Projection(config.d_model, 2 * config.d_ff)
        self.fc2 = Projection(config.d_ff, config.d_model, residual_layers=len(config.layer_pattern))

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Works on each token alone: the packing is taken so that every mixer has one signature."""
        up, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(up * F.silu(gate))
