"""The attention mixer: causal grouped-query attention with rotary positions, inside each document of the pack.

T tokens · S documents · H query heads · H_kv key/value heads · D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from packmamba.attention import varlen_attention
from packmamba.config import AttentionBackend, AttentionConfig, ComputeOptions, ModelConfig
from packmamba.model.layers import Projection
from packmamba.model.mixers.base import Mixer, MixerState
from packmamba.model.mixers.rotary import apply_rotary, rotary_tables
from packmamba.packing import Packing


@dataclass(frozen=True, eq=False)
class AttentionState(MixerState):
    """Keys and values that later tokens can see, packed as T_k tokens in S documents."""

    keys: Tensor
    """(T_k, H_kv, D), rotated."""
    values: Tensor
    """(T_k, H_kv, D)."""
    packing: Packing
    """The documents of keys and values: all their tokens so far, or with a window its last ones."""
    seen: Tensor
    """int32 (S,): tokens of each document so far."""


class AttentionMixer(Mixer):
    """x (T, d_model) -> (T, d_model). One projection holds q, k and v, in this order, as in state-spaces/mamba."""

    state_type = AttentionState

    def __init__(self, layer: AttentionConfig, config: ModelConfig, compute: ComputeOptions) -> None:
        super().__init__()
        heads, kv_heads, self.head_dim = layer.sizes("num_heads", "num_kv_heads", "head_dim")
        self.rope_theta, self.sliding_window = layer.rope_theta, layer.sliding_window
        self.backend: AttentionBackend = compute.attention_backend
        self.splits = [heads, kv_heads, kv_heads]
        self.in_proj = Projection(config.d_model, sum(self.splits) * self.head_dim)
        self.out_proj = Projection(heads * self.head_dim, config.d_model, residual_layers=len(config.layers))

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        q, k, v = self._project(x, packing.position_ids)
        out = varlen_attention(q, k, v, packing, sliding_window=self.sliding_window, backend=self.backend)
        return self.out_proj(out.flatten(1))

    def advance(self, x: Tensor, packing: Packing, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        positions, seen, key_packing = packing.position_ids, packing.lengths, packing
        if state is not None:
            positions, seen = positions + state.seen[packing.seq_idx], seen + state.seen
        q, k, v = self._project(x, positions)
        if state is not None:
            k, v = _append(state.keys, k, state.packing, packing), _append(state.values, v, state.packing, packing)
            lengths = zip(state.packing.host_lengths, packing.host_lengths, strict=True)
            key_packing = Packing.from_lengths([old + new for old, new in lengths]).to(x.device)
        out = varlen_attention(
            q, k, v, packing, key_packing=key_packing, sliding_window=self.sliding_window, backend=self.backend
        )
        return self.out_proj(out.flatten(1)), AttentionState(*self._visible_later(k, v, key_packing), seen)

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (T, H, D), k and v (T, H_kv, D); q and k rotated by `positions`, integers (T,)."""
        qkv = self.in_proj(x).unflatten(-1, (-1, self.head_dim))  # (T, H + 2 H_kv, D)
        q, k, v = qkv.split(self.splits, dim=1)
        # The tables cost T · D numbers, little beside q: cheaper to make in each layer than to keep somewhere.
        cos, sin = rotary_tables(positions, self.head_dim, self.rope_theta)
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v

    def _visible_later(self, k: Tensor, v: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Packing]:
        """Keys, values and their packing without what the window hides from the next token; a document keeps one token
        at least."""
        if self.sliding_window is None or packing.max_seqlen < self.sliding_window:
            return k, v, packing
        most = max(1, self.sliding_window - 1)
        k, v = (torch.cat([document[-most:] for document in packing.unpack(x)]) for x in (k, v))
        return k, v, Packing.from_lengths([min(most, length) for length in packing.host_lengths]).to(packing.device)


def _append(old: Tensor, new: Tensor, old_packing: Packing, packing: Packing) -> Tensor:
    """The rows of each document, the old ones first."""
    pairs = zip(old_packing.unpack(old), packing.unpack(new), strict=True)
    return torch.cat([rows for pair in pairs for rows in pair])
