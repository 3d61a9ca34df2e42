"""The definition of attention inside documents, to be read aloud. Every backend is tested against it.

T query tokens · T_k key tokens · H query heads · H_kv key/value heads · D head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from packmamba.attention.masks import AttentionMask
from packmamba.packing import Packing


def varlen_attention_naive(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, key_packing: Packing, mask: AttentionMask, scale: float
) -> Tensor:
    """softmax(scale · q kᵀ) v over the keys that the mask shows, document by document.

    q: (T, H, D); k, v: (T_k, H_kv, D), each key/value head for H / H_kv query heads. Computed in fp64.
    Returns (T, H, D) in q's dtype.
    """
    group = q.shape[1] // k.shape[1]
    outputs = []
    for q_i, k_i, v_i in zip(packing.unpack(q), key_packing.unpack(k), key_packing.unpack(v), strict=True):
        visible = mask.dense(q_i.shape[0], k_i.shape[0], q.device)
        keys, values = (x.double().repeat_interleave(group, dim=1) for x in (k_i, v_i))
        scores = scale * torch.einsum("qhd,khd->hqk", q_i.double(), keys)
        weights = scores.masked_fill(~visible, -math.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs).to(q.dtype)
