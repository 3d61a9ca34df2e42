"""The Mamba-1 mixer after its input projection, as one function with its backward written out, to save memory.

Convolution, projections, scan and output projection, as in `Mamba1Mixer.forward`. Autograd would keep u, delta and the
gated output; here the backward computes them again: the convolution is cheap, delta is a product with the narrow dt,
and the scan's backward walks through its output anyway. Kept are xz, x_proj's narrow result and the states at segment
starts: 4 bytes for each token and channel in 16 bits, instead of 10, and at most 1 of states.

T tokens · E channels · N states · W convolution width · R step-size rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from packmamba_kernels.causal_conv1d.inputs import ConvInputs, ConvOptions
from packmamba_kernels.causal_conv1d.op import CAUSAL_CONV1D
from packmamba_kernels.selective_scan.inputs import ScanInputs, ScanOptions
from packmamba_kernels.selective_scan.op import SELECTIVE_SCAN
from torch import Tensor

from packmamba.packing import Packing

_CONV = ConvOptions(activation="silu")
_SCAN = ScanOptions(delta_softplus=True)
_SCAN_AGAIN = _SCAN._replace(return_out=True)


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
    conv_documents = CAUSAL_CONV1D.documents(x, packing.cu_seqlens, packing.schedule)
    scan_documents = SELECTIVE_SCAN.documents(x, packing.cu_seqlens, packing.schedule)
    return _Mamba1Inner.apply(xz, *weights, conv_documents, scan_documents)  # pyright: ignore[reportReturnType]


class _Mamba1Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, xz: Tensor, *inputs: Any) -> Tensor:
        *weights, conv_documents, scan_documents = inputs
        conv_weight, conv_bias, W_x, W_dt, dt_bias, A, D, W_out, b_out = weights
        x, z = xz.chunk(2, dim=-1)
        u, _ = CAUSAL_CONV1D.forward(ConvInputs(x, conv_weight, conv_bias, None), conv_documents, _CONV)
        narrow = F.linear(u, W_x.to(u.dtype))  # (T, R+2N)
        dt, B, C = _split(narrow, W_dt, A)
        delta = F.linear(dt, W_dt.to(u.dtype))
        scan_inputs = ScanInputs(u, delta, A, B, C, D, z, dt_bias, None)
        y, _, states = SELECTIVE_SCAN.forward(scan_inputs, scan_documents, _SCAN)
        ctx.save_for_backward(xz, narrow, states, *weights)
        ctx.documents = conv_documents, scan_documents
        return F.linear(y, W_out.to(y.dtype), None if b_out is None else b_out.to(y.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dout = grads[0]
        xz, narrow, states, *weights = ctx.saved_tensors
        conv_documents, scan_documents = ctx.documents
        conv_weight, conv_bias, W_x, W_dt, dt_bias, A, D, W_out, b_out = weights
        x, z = xz.chunk(2, dim=-1)
        conv_inputs = ConvInputs(x, conv_weight, conv_bias, None)
        u, _ = CAUSAL_CONV1D.forward(conv_inputs, conv_documents, _CONV)
        dt, B, C = _split(narrow, W_dt, A)
        delta = F.linear(dt, W_dt.to(u.dtype))
        dy = dout @ W_out.to(dout.dtype)
        dxz = torch.empty_like(xz)
        dx, dz = dxz.chunk(2, dim=-1)
        scan_inputs = ScanInputs(u, delta, A, B, C, D, z, dt_bias, None)
        scan = SELECTIVE_SCAN.backward(dy, None, scan_inputs, (states,), scan_documents, _SCAN_AGAIN, into={"dz": dz})
        ddt = scan.ddelta @ W_dt.to(u.dtype)
        dnarrow = torch.cat([ddt, scan.dB, scan.dC], dim=-1)
        du = scan.du.addmm_(dnarrow, W_x.to(u.dtype))
        conv = CAUSAL_CONV1D.backward(du, None, conv_inputs, (), conv_documents, _CONV, into={"dx": dx})
        return (
            dxz,
            conv.dweight,
            conv.dbias,
            (dnarrow.T @ u).to(W_x.dtype),
            (scan.ddelta.T @ dt).to(W_dt.dtype),
            scan.ddelta_bias,
            scan.dA,
            scan.dD,
            (dout.T @ scan.out).to(W_out.dtype),
            None if b_out is None else dout.sum(0).to(b_out.dtype),
            None,
            None,
        )


def _split(narrow: Tensor, W_dt: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    """dt (T, R), B and C (T, N)."""
    return narrow.split([W_dt.shape[1], A.shape[1], A.shape[1]], dim=-1)
