"""The Mamba-1 mixer after its input projection, as one function with its backward written out, to save memory.

Convolution, projections, scan and output projection, as in `Mamba1Mixer.forward`. Of what autograd would keep, u, delta
and the gated output are computed again in the backward: the convolution is cheap, delta is a product with the narrow
dt, and the scan's backward walks through its output anyway. What stays is xz, x_proj's narrow result and the states at
segment starts: 4 bytes for each token and channel in 16 bits, instead of 10, and at most 1 of states.

T tokens · E channels · N states · W convolution width · R step-size rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from packmamba_kernels.causal_conv1d import op as conv
from packmamba_kernels.selective_scan import op as scan
from torch import Tensor

from packmamba.packing import Packing


def mamba1_inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    packing: Packing,
) -> Tensor:
    """(T, 2E) -> (T, d_model).

    xz: the convolution's input and the gate. conv_weight: (E, W). x_proj_weight: (R+2N, E). dt_proj_weight: (E, R).
    dt_bias, D: (E,), and A: (E, N), in fp32 or wider. out_proj_weight: (d_model, E). Weights of projections may be
    wider than xz, as under autocast: they are cast to its dtype.
    """
    x = xz.chunk(2, dim=-1)[0]
    weights = (conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_bias, A, D, out_proj_weight, out_proj_bias)
    tables = scan.segment_tables(x, packing.schedule)
    conv_tables = conv.segment_tables(x, packing.schedule)
    if conv_tables[0] is tables[0]:  # one level for both; torch.compile wants each tensor once
        conv_tables = ()
    return _Mamba1Inner.apply(xz, *weights, packing.cu_seqlens, *tables, *conv_tables)


class _Mamba1Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, xz: Tensor, *inputs: Any) -> Tensor:
        conv_weight, conv_bias, W_x, W_dt, dt_bias, A, D, W_out, b_out, *boundaries = inputs
        cu_seqlens, tables, conv_tables = _parts(boundaries)
        x, z = xz.chunk(2, dim=-1)
        u, _ = conv.forward(x, conv_weight, conv_bias, None, cu_seqlens, *conv_tables, "silu", False)
        narrow = F.linear(u, W_x.to(u.dtype))  # (T, R+2N)
        dt, B, C = _split(narrow, W_dt, A)
        delta = F.linear(dt, W_dt.to(u.dtype))
        y, _, states = scan.forward(u, delta, A, B, C, D, z, dt_bias, None, cu_seqlens, *tables, True, False)
        ctx.save_for_backward(xz, narrow, states, *inputs)
        return F.linear(y, W_out.to(y.dtype), None if b_out is None else b_out.to(y.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dout = grads[0]
        xz, narrow, states, *inputs = ctx.saved_tensors
        conv_weight, conv_bias, W_x, W_dt, dt_bias, A, D, W_out, b_out, *boundaries = inputs
        cu_seqlens, tables, conv_tables = _parts(boundaries)
        x, z = xz.chunk(2, dim=-1)
        u, _ = conv.forward(x, conv_weight, conv_bias, None, cu_seqlens, *conv_tables, "silu", False)
        dt, B, C = _split(narrow, W_dt, A)
        delta = F.linear(dt, W_dt.to(u.dtype))
        dy = dout @ W_out.to(dout.dtype)
        du, ddelta, dA, dB, dC, dD, dz, ddt_bias, _, y = scan.backward(
            dy, None, u, delta, A, B, C, D, z, dt_bias, None, states, cu_seqlens, *tables, True, True
        )
        ddt = ddelta @ W_dt.to(u.dtype)
        dnarrow = torch.cat([ddt, dB, dC], dim=-1)
        du = du + dnarrow @ W_x.to(u.dtype)
        dx, dconv_weight, dconv_bias, _ = conv.backward(
            du, None, x, conv_weight, conv_bias, None, cu_seqlens, *conv_tables, "silu"
        )
        return (
            torch.cat([dx, dz], dim=-1),
            dconv_weight,
            None if conv_bias is None else dconv_bias,
            (dnarrow.T @ u).to(W_x.dtype),
            (ddelta.T @ dt).to(W_dt.dtype),
            ddt_bias,
            dA,
            dD,
            (dout.T @ y).to(W_out.dtype),
            None if b_out is None else dout.sum(0).to(b_out.dtype),
            *(None,) * len(boundaries),
        )


def _parts(boundaries: list[Any]) -> tuple[Tensor, list[Any], list[Any]]:
    """cu_seqlens, and the tables of the scan's and the convolution's segments."""
    return boundaries[0], boundaries[1:8], boundaries[8:] or boundaries[1:4]


def _split(narrow: Tensor, W_dt: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    """dt (T, R), B and C (T, N)."""
    return narrow.split([W_dt.shape[1], A.shape[1], A.shape[1]], dim=-1)
