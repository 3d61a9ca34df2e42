"""Attention by the flash-attn package: CUDA, fp16 or bf16."""

from __future__ import annotations

from torch import Tensor

from packmamba.attention.masks import AttentionMask
from packmamba.packing import Packing


def attend(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, key_packing: Packing, mask: AttentionMask, scale: float
) -> Tensor:
    """(T, H, D), as `naive.varlen_attention_naive`. The kernels align the mask to a document's last tokens."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  (the `flash` extra)

    return flash_attn_varlen_func(
        q,
        k,
        v,
        packing.cu_seqlens,
        key_packing.cu_seqlens,
        packing.max_seqlen,
        key_packing.max_seqlen,
        softmax_scale=scale,
        causal=True,
        window_size=mask.flash_window(),
        deterministic=True,
    )
