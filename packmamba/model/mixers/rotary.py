"""Rotary position embedding (Su et al., arXiv 2104.09864), positions counted within each document.

T tokens · H heads · D head dimension. Rotated pairs are (i, i + D/2), as in GPT-NeoX and Llama.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, fp32 (T, D/2) each. position_ids: integers (T,)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    angles = position_ids.float()[:, None] * theta**-exponents  # (T, D/2)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (T, H, D) by tables (T, D/2), in fp32 or wider; returns x's dtype."""
    cos, sin = cos[:, None], sin[:, None]  # (T, 1, D/2)
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
