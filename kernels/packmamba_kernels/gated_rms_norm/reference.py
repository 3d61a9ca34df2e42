"""The gated RMS normalisation in torch operations on blocks of rows, forward and backward: the CPU path.

A block fits a core's cache, as in `causal_conv1d.reference`; the sigmoid is written with `exp` for the reason given
there. A mean over a row takes its terms in the same order wherever the row stands.

T tokens in a pack · E channels · G groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from packmamba_kernels.gated_rms_norm.inputs import NormGradients, NormInputs, NormOptions


def _row_blocks(y: Tensor) -> Iterator[slice]:
    rows = max(1, 32_768 * torch.get_num_threads() // y.shape[1])
    for start in range(0, y.shape[0], rows):
        yield slice(start, min(start + rows, y.shape[0]))


def _compute_dtype(y: Tensor) -> torch.dtype:
    return torch.float64 if y.dtype == torch.float64 else torch.float32


def _sigmoid(x: Tensor) -> Tensor:
    return x.neg().exp_().add_(1).reciprocal_()


def _mean_of_groups(x: Tensor, group_size: int) -> Tensor:
    """(rows, G, 1)."""
    return x.unflatten(1, (-1, group_size)).mean(-1, keepdim=True)


def _times(x: Tensor, of_groups: Tensor) -> Tensor:
    """x (rows, E) times a number for each group."""
    return (x.unflatten(1, (of_groups.shape[1], -1)) * of_groups).flatten(1)


def forward(inputs: NormInputs, options: NormOptions) -> Tensor:
    """(T, E) in y's dtype."""
    y, z, weight = inputs
    dtype = _compute_dtype(y)
    weight = weight.to(dtype)
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    for rows in _row_blocks(y):
        v, gate = y[rows].to(dtype), None
        if z is not None:
            gate = z[rows].to(dtype)
            gate = gate * _sigmoid(gate)
            if not options.norm_before_gate:
                v = v * gate
        statistic = (_mean_of_groups(v * v, options.group_size) + options.eps).rsqrt_()
        normed = _times(v, statistic).mul_(weight)
        out[rows] = normed.mul_(gate) if gate is not None and options.norm_before_gate else normed
    return out


def backward(dout: Tensor, inputs: NormInputs, options: NormOptions) -> NormGradients:
    """The gradients of all inputs; the statistics and the gate are computed again."""
    y, z, weight = inputs
    dtype, size = _compute_dtype(y), options.group_size
    wide_weight = weight.to(dtype)
    dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    dweight = torch.zeros(weight.shape, dtype=dtype, device=y.device)
    for rows in _row_blocks(y):
        own, dnormed = y[rows].to(dtype), dout[rows].to(dtype)  # dnormed: the gradient of weight · v · statistic
        v, gate, gate_slope = own, None, None
        if z is not None:
            wide = z[rows].to(dtype)
            sigmoid = _sigmoid(wide)
            gate, gate_slope = wide * sigmoid, sigmoid * (1 + wide * (1 - sigmoid))
            if options.norm_before_gate:
                dnormed = dnormed * gate
            else:
                v = own * gate
        statistic = (_mean_of_groups(v * v, size) + options.eps).rsqrt_()
        n = _times(v, statistic)
        dweight += (dnormed * n).sum(0)
        e = dnormed * wide_weight
        dv = _times(e - _times(n, _mean_of_groups(e * n, size)), statistic)
        if dz is None or gate is None or gate_slope is None:
            dy[rows] = dv
        elif options.norm_before_gate:
            dy[rows] = dv
            dz[rows] = dout[rows].to(dtype) * wide_weight * n * gate_slope
        else:
            dy[rows] = dv * gate
            dz[rows] = dv * own * gate_slope
    return NormGradients(dy, dz, dweight.to(weight.dtype))
