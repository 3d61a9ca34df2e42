"""Attention by torch's scaled_dot_product_attention, one call a document: any device, any dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from packmamba.attention.masks import AttentionMask
from packmamba.packing import Packing


def attend(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, key_packing: Packing, mask: AttentionMask, scale: float
) -> Tensor:
    """(T, H, D), as `naive.varlen_attention_naive`, in q's dtype throughout."""
    grouped = q.shape[1] != k.shape[1]
    outputs = []
    for document in zip(packing.unpack(q), key_packing.unpack(k), key_packing.unpack(v), strict=True):
        q_i, k_i, v_i = (x.transpose(0, 1).unsqueeze(0) for x in document)  # (1, H, L, D)
        queries, keys = q_i.shape[2], k_i.shape[2]
        # torch aligns is_causal to the top left, which is right for as many queries as keys.
        is_causal = queries == keys and mask.hides_nothing_before(keys)
        sees_all = queries == 1 and mask.hides_nothing_before(keys)
        out = F.scaled_dot_product_attention(
            q_i,
            k_i,
            v_i,
            attn_mask=None if is_causal or sees_all else mask.dense(queries, keys, q.device),
            is_causal=is_causal,
            scale=scale,
            enable_gqa=grouped,
        )
        outputs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)
