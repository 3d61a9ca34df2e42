"""The definition of the gated RMS normalisation, to be read aloud. Every other implementation is tested against it.

T tokens in a pack · E channels · G groups of E/G channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gated_rms_norm_naive(
    y: Tensor, z: Tensor | None, weight: Tensor, *,
    eps: float = 1e-5, group_size: int | None = None, norm_before_gate: bool = False,
) -> Tensor:  # fmt: skip
    """out = weight · v / √(mean v² + eps) with v = y · silu(z); the mean over each group of `group_size` channels.

    With `norm_before_gate` the gate comes last: out = weight · y / √(mean y² + eps) · silu(z).

    y, z: (T, E); z None: no gate. weight: (E,). Computed in fp32 (fp64 for fp64 y), given in y's dtype. RMSNorm is
    Zhang & Sennrich, arXiv 1910.07467; with the gate, Mamba-2's (Dao & Gu, arXiv 2405.21060, section 7.1).
    """
    compute_dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
    gate = None if z is None else F.silu(z.to(compute_dtype))
    v = y.to(compute_dtype)
    if gate is not None and not norm_before_gate:
        v = v * gate
    groups = v.unflatten(1, (-1, group_size or v.shape[1]))  # (T, G, E/G)
    statistic = (groups.square().mean(-1, keepdim=True) + eps).rsqrt()
    out = weight.to(compute_dtype) * (groups * statistic).flatten(1)
    if gate is not None and norm_before_gate:
        out = out * gate
    return out.to(y.dtype)
