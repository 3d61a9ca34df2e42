"""Triton kernels before and after the walks: they lay parameters out, and add up the partial sums of programs.

Each does in one launch what torch would do in four to six, which the host would have to enqueue. Names as in
`kernels_forward.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from packmamba_kernels.selective_scan.kernels_forward import LOG2_E, OCTET, size_of


@triton.jit(do_not_specialize=["T"])
def prepare_kernel(
    p_A, p_B, p_C, p_A2, p_BC, T, E, G, stride_Bt, stride_Bg, stride_Ct, stride_Cg,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes A (E, N) times log2(e), in fp32 and laid out as the state, so that exp2(A2 Δ) is the decay; and B and C as
    pairs, (T, G, N, 2) in contiguous fp32, so that they are converted once here and not by every program of a walk."""
    blocks = tl.cdiv(size_of(E, N).to(tl.int32), BLOCK)
    i_block = tl.program_id(0)
    if i_block < blocks:
        o_A2 = i_block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        o_e = o_A2 // (N * OCTET) * OCTET + o_A2 % OCTET
        b_A = tl.load(p_A + o_e * N + o_A2 // OCTET % N, mask=o_e < E, other=0.0)  # [BLOCK]
        tl.store(p_A2 + o_A2, b_A.to(tl.float32) * LOG2_E, mask=o_A2 < size_of(E, N))
    else:
        o_n = tl.arange(0, N)[None, :]  # [1, N]
        o_row = (i_block - blocks).to(tl.int64) * (BLOCK // N) + tl.arange(0, BLOCK // N)[:, None]  # [BLOCK/N, 1]
        m_row = o_row < T.to(tl.int64) * G
        o_t, o_g = o_row // G, o_row % G
        b_B = tl.load(p_B + o_t * stride_Bt + o_g * stride_Bg + o_n, mask=m_row, other=0.0)  # [BLOCK/N, N]
        b_C = tl.load(p_C + o_t * stride_Ct + o_g * stride_Cg + o_n, mask=m_row, other=0.0)
        o_BC = (o_row * N + o_n)[:, :, None] * 2 + tl.arange(0, 2)[None, None, :]  # [BLOCK/N, N, 2]
        tl.store(p_BC + o_BC, tl.join(b_B.to(tl.float32), b_C.to(tl.float32)), mask=m_row[:, :, None])


@triton.jit
def sum_of_parts(p_parts, num_parts, stride, o_e, m_e, ROWS: tl.constexpr):
    """The sum over num_parts rows of a matrix, `stride` wide, at columns o_e [BE], in a fixed order: sum r of ROWS adds
    every ROWS-th row from row r on, and these sums are added last."""
    b_sum = tl.zeros([ROWS, o_e.shape[0]], tl.float32)  # [ROWS, BE]
    for i in range(0, num_parts, ROWS):
        o_part = i + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
        b_sum += tl.load(
            p_parts + o_part.to(tl.int64) * stride + o_e[None, :],
            mask=(o_part < num_parts) & m_e[None, :],
            other=0.0,
        )
    return tl.sum(b_sum, 0)


@triton.jit
def sum_blocks(p_parts, p_out, i, T, G, blocks, N: tl.constexpr, ROWS: tl.constexpr):
    """ROWS tokens of dB or dC, (T, G, N): the sum over the channel blocks of p_parts, (G * blocks, T, N), in order."""
    i_g = i % G
    o_t = (i // G).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_n = tl.arange(0, N)
    m_t = (o_t < T)[:, None]
    o_part = o_t[:, None] * N + o_n[None, :]
    part = tl.cast(T, tl.int64) * N
    b_sum = tl.zeros([ROWS, N], tl.float32)  # [ROWS, N]
    for j in range(blocks):
        b_sum += tl.load(p_parts + (i_g * blocks + j) * part + o_part, mask=m_t, other=0.0)
    o_out = (o_t[:, None] * G + i_g) * N + o_n[None, :]
    tl.store(p_out + o_out, b_sum.to(p_out.dtype.element_ty), mask=m_t)


@triton.jit(do_not_specialize=["T", "blocks", "num_parts"])
def finish_kernel(
    p_dB_parts, p_dC_parts, p_dA_parts, p_dD_parts, p_dbias_parts, p_dB, p_dC, p_dA, p_dD, p_dbias,
    T, blocks, num_parts, E, G,
    N: tl.constexpr, BE: tl.constexpr, ROWS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Adds up the partial sums of the sweeps' programs. The first N + 2 rows of programs write dA (E, N), a row a
    state, dD (E,) and dbias (E,). Each program after those writes 1024 elements of dB and of dC."""
    tiles = tl.cdiv(E, BE)
    i_row, i_b = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    if i_row < N + 2:
        o_e = i_b * BE + tl.arange(0, BE)  # [BE]
        m_e = o_e < E
        if i_row < N:
            o_part = o_e // OCTET * (N * OCTET) + o_e % OCTET
            b_dA = sum_of_parts(p_dA_parts + i_row * OCTET, num_parts, size_of(E, N), o_part, m_e, ROWS)
            tl.store(p_dA + o_e * N + i_row, b_dA.to(p_dA.dtype.element_ty), mask=m_e)
        elif i_row == N:
            if HAS_D:
                b_dD = sum_of_parts(p_dD_parts, num_parts, E, o_e, m_e, ROWS)
                tl.store(p_dD + o_e, b_dD.to(p_dD.dtype.element_ty), mask=m_e)
        else:
            if HAS_BIAS:
                b_dbias = sum_of_parts(p_dbias_parts, num_parts, E, o_e, m_e, ROWS)
                tl.store(p_dbias + o_e, b_dbias.to(p_dbias.dtype.element_ty), mask=m_e)
    else:
        i = tl.program_id(0) - (N + 2) * tiles
        sum_blocks(p_dB_parts, p_dB, i, T, G, blocks, N, 1024 // N)
        sum_blocks(p_dC_parts, p_dC, i, T, G, blocks, N, 1024 // N)
