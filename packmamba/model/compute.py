"""Selective recomputation: a layer that is computed again still keeps the results of its scans and attention.

They are the most expensive to compute. Selective activation checkpointing, as in "Selective Checkpoint++" of LoongTrain
(arXiv 2406.18485, section 5.2).
"""

from __future__ import annotations

import functools
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

KEPT = (
    "packmamba::selective_scan",
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_varlen_forward",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
)
"""Operators whose results are kept, by their registered names."""


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op.name().split(".")[0] in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


keep_sequence_mixing = functools.partial(create_selective_checkpoint_contexts, _policy)
"""The `context_fn` of `torch.utils.checkpoint.checkpoint`."""
