"""Floating-point operations of a forward pass, counted from the configuration and the documents' lengths.

A multiply-add counts as two. Attention is counted by the pairs that a token may see inside its own document, not by
the length of the pack; norms, activations and the embedding's look-up are not counted. Model FLOP utilisation is
`training_flops(config, lengths) / seconds / (peak FLOP/s of the device)`. What a layer costs, its configuration says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packmamba.config import AttentionConfig, ModelConfig
from packmamba.packing import Packing
from packmamba.visible_pairs import AttentionCost


def forward_flops(config: ModelConfig, lengths: Packing | Sequence[int] | np.ndarray) -> int:
    """FLOPs of logits for documents of these lengths (tokens), packed or not."""
    if isinstance(lengths, Packing):
        lengths = lengths.host_lengths
    documents = np.asarray(lengths, dtype=np.int64)
    head = 2 * config.d_model * config.vocab_size * int(documents.sum())
    return head + sum(layer.flops(config.d_model, documents) for layer in config.layers)


def training_flops(config: ModelConfig, lengths: Packing | Sequence[int] | np.ndarray) -> int:
    """FLOPs of forward and backward: three times the forward, as the backward makes two products for each of its."""
    return 3 * forward_flops(config, lengths)


def attention_costs(config: ModelConfig) -> tuple[AttentionCost, ...]:
    """The cost of attention's visible pairs, one entry for each distinct window of the model's attention layers.

    A document of L tokens costs L + Σ cost · visible_pairs(L, window), in units of one token without attention's pairs.
    Empty without attention.
    """
    per_token = 2 * config.d_model * config.vocab_size
    per_token += sum(layer.flops_per_token(config.d_model) for layer in config.layers)
    per_pair: dict[int | None, int] = {}
    for layer in config.layers:
        if isinstance(layer, AttentionConfig):
            window = layer.sliding_window
            per_pair[window] = per_pair.get(window, 0) + layer.flops_per_pair(config.d_model)
    return tuple(AttentionCost(cost=flops / per_token, window=window) for window, flops in per_pair.items())


def attention_cost(config: ModelConfig) -> float:
    """FLOPs of one (query, key) pair, over all attention layers, ÷ FLOPs of one token everywhere else; 0 without
    attention. `attention_costs` tells layers with different windows apart."""
    return sum(cost.cost for cost in attention_costs(config))
