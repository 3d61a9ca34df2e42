"""Triton kernels of the gated RMS normalisation, forward and backward.

A program owns one group of channels and ROWS tokens at a time, which it holds whole, so that each tensor is read once.
Tokens never meet but in the weight's gradient.

Names: p_ pointers, b_ blocks of values, o_ offsets, m_ masks. T tokens in a pack · E channels · G groups of SIZE.
"""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# (Triton compiles this file: its blocks have other types, and an `if` on a constant leaves one branch.)

from __future__ import annotations

import triton
import triton.language as tl

from packmamba_kernels.runtime.kernel_functions import sigmoid


@triton.jit
def reciprocal_root(b_x):
    """1 / √x. In fp64 by a division: `rsqrt` is an approximation there."""
    if b_x.dtype == tl.float64:
        return 1.0 / tl.sqrt(b_x)
    return tl.rsqrt(b_x)


@triton.jit(do_not_specialize=["T"])
def gated_rms_norm_fwd_kernel(
    y, z, weight, out, stride_y, stride_z, E, T,
    SIZE: tl.constexpr, EPS: tl.constexpr, BE: tl.constexpr, ROWS: tl.constexpr, HAS_Z: tl.constexpr,
    GATE_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program takes ROWS tokens of one group. y, z: (T, E), rows stride_y and stride_z apart. weight: (E,).
    out: (T, E)."""
    num_groups = E // SIZE
    i_group = tl.program_id(0) % num_groups
    o_t = (tl.program_id(0) // num_groups).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    o_c = tl.arange(0, BE)[None, :]  # [1, BE], in the group
    o_e = i_group * SIZE + o_c  # [1, BE]
    m_c = o_c < SIZE  # [1, BE]
    m = (o_t < T) & m_c  # [ROWS, BE]

    b_w = tl.load(weight + o_e, mask=m_c, other=0.0).to(ACC)  # [1, BE]
    b_v = tl.load(y + o_t * stride_y + o_e, mask=m, other=0.0).to(ACC)  # [ROWS, BE]
    if HAS_Z:
        b_z = tl.load(z + o_t * stride_z + o_e, mask=m, other=0.0).to(ACC)  # [ROWS, BE]
        b_gate = b_z * sigmoid(b_z)  # [ROWS, BE]
        if not GATE_LAST:
            b_v *= b_gate
    b_r = reciprocal_root(tl.sum(b_v * b_v, 1) * (1.0 / SIZE) + EPS)[:, None]  # [ROWS, 1]
    b_out = b_v * b_r * b_w  # [ROWS, BE]
    if HAS_Z:
        if GATE_LAST:
            b_out *= b_gate
    tl.store(out + o_t * E + o_e, b_out.to(out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["T", "tiles_per_program"])
def gated_rms_norm_bwd_kernel(
    dout, y, z, weight, dy, dz, partial, stride_y, stride_z, E, T, tiles_per_program,
    SIZE: tl.constexpr, EPS: tl.constexpr, BE: tl.constexpr, ROWS: tl.constexpr, HAS_Z: tl.constexpr,
    GATE_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program takes tiles_per_program runs of ROWS tokens of one group. dout, dy, dz: (T, E); the others as in the
    forward. partial: (programs along T, E), each program's sums for the weight."""
    num_groups = E // SIZE
    i_group = tl.program_id(0) % num_groups
    i_program = (tl.program_id(0) // num_groups).to(tl.int64)
    o_c = tl.arange(0, BE)[None, :]  # [1, BE], in the group
    o_e = i_group * SIZE + o_c  # [1, BE]
    m_c = o_c < SIZE  # [1, BE]
    b_dw = tl.zeros([ROWS, BE], ACC)  # [ROWS, BE]
    for i in range(tiles_per_program):
        o_t = (i_program * tiles_per_program + i) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
        m = (o_t < T) & m_c  # [ROWS, BE]
        b_y = tl.load(y + o_t * stride_y + o_e, mask=m, other=0.0).to(ACC)  # [ROWS, BE]
        b_dout = tl.load(dout + o_t * E + o_e, mask=m, other=0.0).to(ACC)  # [ROWS, BE]
        b_v, b_dn = b_y, b_dout  # [ROWS, BE], b_dn: the gradient of weight · v · r
        if HAS_Z:
            b_z = tl.load(z + o_t * stride_z + o_e, mask=m, other=0.0).to(ACC)  # [ROWS, BE]
            b_s = sigmoid(b_z)  # [ROWS, BE]
            if GATE_LAST:
                b_dn = b_dout * (b_z * b_s)
            else:
                b_v = b_y * (b_z * b_s)
        b_r = reciprocal_root(tl.sum(b_v * b_v, 1) * (1.0 / SIZE) + EPS)[:, None]  # [ROWS, 1]
        b_n = b_v * b_r  # [ROWS, BE]
        b_dw += b_dn * b_n
        b_w = tl.load(weight + o_e, mask=m_c, other=0.0).to(ACC)  # [1, BE], again each time: no registers to hold it
        b_e = b_dn * b_w  # [ROWS, BE]
        b_mean = tl.sum(b_e * b_n, 1)[:, None] * (1.0 / SIZE)  # [ROWS, 1]
        b_dy = b_r * (b_e - b_n * b_mean)  # [ROWS, BE]
        if HAS_Z:
            b_slope = b_s * (1.0 + b_z * (1.0 - b_s))  # [ROWS, BE]
            if GATE_LAST:
                b_dz = b_dout * b_w * b_n * b_slope  # [ROWS, BE]
            else:
                b_dz = b_dy * b_y * b_slope
                b_dy *= b_z * b_s
            tl.store(dz + o_t * E + o_e, b_dz.to(dz.dtype.element_ty), mask=m)
        tl.store(dy + o_t * E + o_e, b_dy.to(dy.dtype.element_ty), mask=m)
    p_partial = partial + i_program * E + o_e  # [1, BE]
    tl.store(p_partial, tl.sum(b_dw, 0)[None, :], mask=m_c)
