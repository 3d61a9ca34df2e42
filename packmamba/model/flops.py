"""Floating-point operations of a forward pass, counted from the configuration and the documents' lengths.

A multiply-add counts as two. Attention is counted by the pairs that a token may see inside its own document, not by
the length of the pack; norms, activations and the embedding's look-up are not counted. Model FLOP utilisation is
`training_flops(config, lengths) / seconds / (peak FLOP/s of the device)`.

T tokens · E channels · N states · W convolution width · R step-size rank · H heads · D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packmamba.config import ModelConfig
from packmamba.packing import Packing


def forward_flops(config: ModelConfig, lengths: Packing | Sequence[int] | np.ndarray) -> int:
    """FLOPs of logits for documents of these lengths (tokens), packed or not."""
    if isinstance(lengths, Packing):
        lengths = lengths.host_lengths
    documents = np.asarray(lengths, dtype=np.int64)
    head = 2 * config.d_model * config.vocab_size * int(documents.sum())
    return head + sum(layer_flops(config, kind, documents) for kind in config.layer_kinds)


def training_flops(config: ModelConfig, lengths: Packing | Sequence[int] | np.ndarray) -> int:
    """FLOPs of forward and backward: three times the forward, as the backward makes two products for each of its."""
    return 3 * forward_flops(config, lengths)


def attention_cost(config: ModelConfig) -> float:
    """FLOPs of one (query, key) pair of attention, over all layers, ÷ FLOPs of one token everywhere else: a document of
    L tokens costs L + attention_cost · (its pairs), in units of a token without attention's. 0 without attention."""
    layers = config.layer_kinds.count("attention")
    if not layers:
        return 0.0
    pair = layers * _flops_per_pair(config)
    return pair / (forward_flops(config, [1]) - pair)


def layer_flops(config: ModelConfig, kind: str, documents: np.ndarray) -> int:
    """FLOPs of one layer. kind: "mamba1", "attention" or "mlp"; documents: int64 (S,) lengths."""
    tokens = int(documents.sum())
    if kind == "mamba1":
        return tokens * _mamba1_flops_per_token(config)
    if kind == "attention":
        heads, width = config.num_heads, config.head_dim
        projections = 2 * config.d_model * width * (2 * heads + 2 * config.num_kv_heads)
        pairs = visible_pairs(documents, config.attention.sliding_window)
        return tokens * projections + _flops_per_pair(config) * pairs
    if kind == "mlp":
        return tokens * 6 * config.d_model * config.d_ff
    raise ValueError(f"unknown layer kind {kind!r}; available: mamba1, attention, mlp")


def visible_pairs(documents: np.ndarray, sliding_window: int | None) -> int:
    """(query, key) pairs of causal attention, Σ over documents of Σ_t min(t + 1, window)."""
    window = documents if sliding_window is None else np.minimum(documents, sliding_window)
    return int((window * (window + 1) // 2 + (documents - window) * window).sum())


def _flops_per_pair(config: ModelConfig) -> int:
    """Of one attention layer: q·k and weights·v."""
    return 4 * config.num_heads * config.head_dim


def _mamba1_flops_per_token(config: ModelConfig) -> int:
    mamba, channels, rank = config.mamba1, config.d_inner, config.dt_rank
    projections = 2 * channels * (2 * config.d_model + (rank + 2 * mamba.d_state) + rank + config.d_model)
    convolution = 2 * channels * mamba.d_conv
    # A state: Δ·A, its exponential, times h, Δu·B, the sum, times C, the sum over n: 7. A channel: Δ·u, D·u with its
    # sum, and the gate: 4.
    scan = channels * (7 * mamba.d_state + 4)
    return projections + convolution + scan
