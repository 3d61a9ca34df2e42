"""The attention mixer: causal grouped-query attention with rotary positions, inside each document of the pack.

T tokens · H query heads · H_kv key/value heads · D head dimension.
"""

from __future__ import annotations

from torch import Tensor, nn

from packmamba.attention import varlen_attention
from packmamba.config import ModelConfig
from packmamba.model.layers import Projection
from packmamba.model.mixers.rotary import apply_rotary, rotary_tables
from packmamba.packing import Packing


class AttentionMixer(nn.Module):
    """x (T, d_model) -> (T, d_model). One projection holds q, k and v, in this order, as in state-spaces/mamba."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = config.attention
        self.head_dim = config.head_dim
        self.splits = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.in_proj = Projection(config.d_model, sum(self.splits) * config.head_dim)
        self.out_proj = Projection(
            config.num_heads * config.head_dim, config.d_model, residual_layers=len(config.layer_pattern)
        )

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        qkv = self.in_proj(x).unflatten(-1, (-1, self.head_dim))  # (T, H + 2 H_kv, D)
        q, k, v = qkv.split(self.splits, dim=1)
        # The tables cost T · D numbers, little beside q: cheaper to make in each layer than to keep somewhere.
        cos, sin = rotary_tables(packing.position_ids, self.head_dim, self.attention.rope_theta)
        out = varlen_attention(
            apply_rotary(q, cos, sin),
            apply_rotary(k, cos, sin),
            v,
            packing,
            sliding_window=self.attention.sliding_window,
            backend=self.attention.backend,
        )
        return self.out_proj(out.flatten(1))
