"""The operators and their gradients in fp64, to measure others against. Sizes that the definitions are too slow for.

Written for precision and nothing else: every state and every gradient of a state is kept, no sum is a difference of
other sums, so nothing cancels. Shares no code with the operators; the tests compare it with the definitions.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · W width of the convolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

Results = dict[str, Tensor]
"""`out`, and the gradient of input x as `dx`, all fp64."""

_SLICE = 16
"""Channels at a time: 65,536 tokens of N = 16 states then need 1 GB."""


def causal_conv1d_exact(inputs: Mapping[str, Tensor], dout: Tensor, cu_seqlens: Tensor) -> Results:
    """x (T, E), weight (E, W), bias (E,), with SiLU; the gradients are those of Σ dout · out. dout: (T, E)."""
    leaves = {name: value.detach().double().requires_grad_() for name, value in inputs.items()}
    x, weight, bias = leaves["x"], leaves["weight"], leaves["bias"]
    width, outputs = weight.shape[1], []
    for bos, eos in pairwise(cu_seqlens.tolist()):
        padded = F.pad(x[bos:eos], (0, 0, width - 1, 0))
        taps = [weight[:, w] * padded[w : w + eos - bos] for w in range(width)]
        outputs.append(F.silu(bias + sum(taps)))
    out = torch.cat(outputs)
    gradients = torch.autograd.grad(out, list(leaves.values()), dout.double())
    return {"out": out.detach()} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


@torch.no_grad()
def selective_scan_exact(inputs: Mapping[str, Tensor], dout: Tensor, cu_seqlens: Tensor) -> Results:
    """u, delta, z (T, E), A (E, N), B, C (T, N), D, delta_bias (E,), with softplus; the gradients are those of
    Σ dout · out. dout: (T, E).

    The formulas of kernels/README.md with dλ_t = g_t a_t h_{t-1} as it stands.
    """
    exact = {name: value.detach().double() for name, value in inputs.items()} | {"dout": dout.double()}
    by_token, by_channel = ("u", "delta", "z", "dout"), ("A", "D", "delta_bias")
    slices = []
    for first in range(0, dout.shape[1], _SLICE):
        channels = slice(first, first + _SLICE)
        part = {name: exact[name][:, channels] for name in by_token} | {
            name: exact[name][channels] for name in by_channel
        }
        slices.append(_scan(exact | part, cu_seqlens.tolist()))
    joined = {name: torch.cat([part[name] for part in slices], 1) for name in ("out", "du", "ddelta", "dz")}
    joined |= {name: torch.cat([part[name] for part in slices]) for name in ("dA", "dD", "ddelta_bias")}
    return joined | {name: torch.stack([part[name] for part in slices]).sum(0) for name in ("dB", "dC")}


def _scan(x: Mapping[str, Tensor], bounds: list[int]) -> Results:
    u, z, A, B, C, D = (x[name] for name in ("u", "z", "A", "B", "C", "D"))
    raw = x["delta"] + x["delta_bias"]
    step = F.softplus(raw)  # (T, E)
    decay = torch.exp(step[..., None] * A)  # (T, E, N)
    states = (step * u)[..., None] * B[:, None]  # what each token adds, then the states
    for bos, eos in pairwise(bounds):
        _accumulate(states, decay, ((t, t - 1, t) for t in range(bos + 1, eos)))
    y = (states * C[:, None]).sum(-1) + D * u
    sigmoid = torch.sigmoid(z)
    dy = x["dout"] * z * sigmoid

    grads = dy[..., None] * C[:, None]  # what each token adds, then the gradients of states
    for bos, eos in pairwise(bounds):
        _accumulate(grads, decay, ((t, t + 1, t + 1) for t in range(eos - 2, bos - 1, -1)))
    dC = (states * dy[..., None]).sum(1)
    dB = (grads * (step * u)[..., None]).sum(1)
    g_B = (grads * B[:, None]).sum(-1)
    first = torch.tensor(bounds[:-1])
    dlog = grads.mul_(decay)  # dλ: in place, for the memory
    dlog[1:] *= states[:-1]
    dlog[first] = 0
    dstep = (dlog * A).sum(-1) + u * g_B
    ddelta = dstep * torch.sigmoid(raw)
    return {
        "out": y * z * sigmoid,
        "du": step * g_B + D * dy,
        "ddelta": ddelta,
        "dA": (dlog * step[..., None]).sum(0),
        "dB": dB,
        "dC": dC,
        "dD": (dy * u).sum(0),
        "dz": x["dout"] * y * sigmoid * (1 + z * (1 - sigmoid)),
        "ddelta_bias": ddelta.sum(0),
    }


def _accumulate(rows: Tensor, decay: Tensor, walk: Iterable[tuple[int, int, int]]) -> None:
    """rows[t] += decay[by] * rows[before], for each (t, before, by) in order."""
    row, factor = rows.unbind(), decay.unbind()
    for t, before, by in walk:
        row[t].addcmul_(factor[by], row[before])
