"""The definition of the packed selective scan, to be read aloud. Every other implementation is tested against it.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_scan_naive(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None = None, z: Tensor | None = None, delta_bias: Tensor | None = None, *,
    delta_softplus: bool = False, cu_seqlens: Tensor | None = None, initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """h_t = exp(Δ_t A) h_{t-1} + Δ_t u_t B_t, y_t = Σ_n C_t h_t + D u_t, out_t = y_t · silu(z_t), inside each document.

    u, delta, z: (T, E). A: (E, N). B, C: (T, N) or (T, G, N), group g for channels g·E/G to (g+1)·E/G. D, delta_bias:
    (E,). Δ = delta + delta_bias, through softplus where `delta_softplus`. At a document's first token h_{t-1} is its
    row of initial_states (S, E, N), or 0. Computed in fp32 (fp64 for fp64 u).

    Returns out (T, E) in u's dtype; with `return_final_states` also h at each document's last token (S, E, N).

    The selective state-space model S6 of Gu & Dao, arXiv 2312.00752, algorithm 2, discretised as in its equation 4 with
    the Euler rule for B.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    num_tokens, channels = u.shape
    A = A.to(dtype)
    step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
    if delta_softplus:
        step = F.softplus(step)
    drive = step * u.to(dtype)
    B, C = per_channel(B.to(dtype), channels), per_channel(C.to(dtype), channels)  # (T, E, N)

    tokens = list(zip(step.unbind(), drive.unbind(), B.unbind(), C.unbind(), strict=True))
    outputs, final_states = [], []
    bounds = [0, num_tokens] if cu_seqlens is None else cu_seqlens.tolist()
    for s, (bos, eos) in enumerate(pairwise(bounds)):
        h = torch.zeros_like(A) if initial_states is None else initial_states[s].to(dtype)
        for step_t, drive_t, B_t, C_t in tokens[bos:eos]:
            h = torch.exp(step_t[:, None] * A) * h + drive_t[:, None] * B_t  # (E, N)
            outputs.append((C_t * h).sum(-1))
        final_states.append(h)

    out = torch.stack(outputs)
    if D is not None:
        out = out + D.to(dtype) * u.to(dtype)
    if z is not None:
        out = out * F.silu(z.to(dtype))
    out = out.to(u.dtype)
    return (out, torch.stack(final_states)) if return_final_states else out


def per_channel(matrix: Tensor, channels: int) -> Tensor:
    """(T, N) or (T, G, N) -> (T, E, N): each channel's view of its group's row."""
    if matrix.ndim == 2:
        return matrix[:, None, :].expand(-1, channels, -1)
    return matrix.repeat_interleave(channels // matrix.shape[1], dim=1)
