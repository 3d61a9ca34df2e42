"""Attention by torch's varlen_attn: CUDA, fp16 or bf16."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from packmamba.attention.masks import AttentionMask
from packmamba.packing import Packing

varlen_attn: Any = None
if (
    torch.backends.cuda.is_built()
):  # elsewhere nothing can run it, and with it comes torch's compiler, which takes seconds
    from torch.nn.attention.varlen import varlen_attn

_PARAMETERS = inspect.signature(varlen_attn).parameters if varlen_attn else {}


def attend(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, key_packing: Packing, mask: AttentionMask, scale: float
) -> Tensor:
    """(T, H, D), as `naive.varlen_attention_naive`. The kernels align the mask to a document's last tokens."""
    # The signature grew: enable_gqa and num_splits came after torch 2.11, whose kernels take grouped heads unasked.
    # num_splits=1 keeps the order of the sums independent of the other documents' lengths (and newer torch from taking
    # cuDNN, which does not promise that).
    options = {"enable_gqa": q.shape[1] != k.shape[1], "num_splits": 1}
    out = varlen_attn(
        q,
        k,
        v,
        packing.cu_seqlens,
        key_packing.cu_seqlens,
        packing.max_seqlen,
        key_packing.max_seqlen,
        scale=scale,
        window_size=mask.flash_window(),
        **{name: value for name, value in options.items() if name in _PARAMETERS},
    )
    assert isinstance(out, Tensor)  # a tuple only where auxiliary outputs were asked for
    return out
