"""Triton kernels of the packed selective scan's backward. Names, layouts and links as in `kernels_forward.py`.

The backward stores no states but those at the ends of 64-token chunks. Let a_t = exp(Δ_t A), b_t = Δ_t u_t B_t,
c_t = dy_t C_t, and g_t the gradient of h_t. From token to token pass h'_t = a_t h_{t-1} going forward and
q_t = a_{t+1} g_{t+1} going back. The gradient of λ_t = Δ_t A obeys dλ_t = dλ_{t+1} + c_t h'_t - b_t q_t, a running sum
from the end. So h is needed only in a forward sweep and g only in a reverse one. They meet at chunk ends alone, where
the sum restarts from its exact value q h. (c_t h_t - b_t g_t is the same difference, but both terms then hold c_t b_t,
which is nearly everything where states decay at once.)
- The forward sweep computes h; it writes dz, dC_t = Σ_e dy h and the inflow P_t = dy_t Σ_n A C_t h'_t.
- The reverse sweep computes g; it writes dB_t = Σ_e g Δ u, du = Δ Σ_n g B + dy D and
  dΔ_t = Σ_{s ≥ t} (P_s - Q_s) + u_t Σ_n g B, with Q_t = Δ_t u_t Σ_n A B_t q_t.
- dA = Σ_t Δ_t dλ_t, in which each c_s h'_s - b_s q_s counts with the sum of Δ from the chunk's start to s.
A is in units of log2 here, and so are P and Q. LEAN: addresses are computed where they are used, not kept over a loop.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# tl.range is no iterator outside of a kernel, nor is a compile-time argument a bool.
from __future__ import annotations

import triton
import triton.language as tl

from packmamba_kernels import schedule
from packmamba_kernels.runtime.kernel_functions import sigmoid
from packmamba_kernels.selective_scan.kernels_forward import (
    STAGES,
    load_pair,
    load_parameter,
    load_row,
    place_of,
    segment_of,
    size_of,
    state_before,
    step_of,
    tile_of,
)

LN_2 = tl.constexpr(0.6931471805599453)
CHUNK = tl.constexpr(schedule.CHUNK)


@triton.jit
def sum_channels(b_x):
    """The sum over channels, [N], of a tile [N, BE].

    `tl.split` wants two neighbours in one lane. So the compiler moves the tile through shared memory once, and then a
    lane adds channels of one state. `tl.sum` alone would exchange every state's value between all lanes, five times.
    """
    for _ in tl.static_range(6):
        if b_x.shape[1] > 2:
            b_even, b_odd = tl.split(tl.reshape(b_x, [b_x.shape[0], b_x.shape[1] // 2, 2]))
            b_x = b_even + b_odd
    return tl.sum(b_x, 1)


@triton.jit
def segment_grads_kernel(
    p_dout, p_delta, p_z, p_BC, p_A, p_bias, p_links, p_elapsed,
    p_start, p_length, p_seq, p_cu_segments, p_order,
    stride_delta, stride_z, E, width, G,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One program walks one segment that follows another, from its end. It writes the gradient of the state that the
    segment starts from, when its last state has none (p_links), and the sum of its Δ (p_elapsed)."""
    i_w, _i_b, i_g, o_e, m_e = place_of(width, G, BE, EVEN)
    i_before = tl.load(p_order + i_w)
    i_seq = tl.load(p_seq + i_before)
    if i_before + 1 >= tl.load(p_cu_segments + i_seq + 1):
        return
    bos, n = tl.load(p_start + i_before + 1).to(tl.int64), tl.load(p_length + i_before + 1)
    o_tile = tile_of(o_e, N, RUN)
    b_A = tl.load(p_A + o_tile, mask=m_e[None, :], other=0.0)  # [N, BE]
    b_bias = load_parameter(p_bias, o_e, m_e, HAS_BIAS)  # [BE]
    b_q, b_elapsed = tl.zeros([N, BE], tl.float32), tl.zeros([BE], tl.float32)

    for i in tl.range(n, num_stages=STAGES):
        t = bos + n - 1 - i
        b_dy = load_row(p_dout, t * E, o_e, m_e, WORDS).to(tl.float32)  # [BE]
        b_delta = load_row(p_delta, t * stride_delta, o_e, m_e, WORDS)  # [BE]
        _, b_C = load_pair(p_BC, t * G + i_g, N)  # [N]
        if HAS_Z:
            b_z = load_row(p_z, t * stride_z, o_e, m_e, WORDS).to(tl.float32)  # [BE]
            b_dy = b_dy * (b_z * sigmoid(b_z))
        b_step, _ = step_of(b_delta, b_bias, SOFTPLUS)
        b_elapsed += b_step
        b_q = tl.exp2(b_step[None, :] * b_A) * (b_q + b_dy[None, :] * b_C[:, None])  # [N, BE]
    i_link = (i_before - i_seq).to(tl.int64)
    tl.store(p_links + i_link * size_of(E, N) + o_tile, b_q, mask=m_e[None, :])
    tl.store(p_elapsed + i_link * E + o_e, b_elapsed, mask=m_e)


@triton.jit(do_not_specialize=["num_walks", "num_programs", "T"])
def forward_sweep_kernel(
    p_dout, p_u, p_delta, p_z, p_BC, p_A, p_D, p_bias, p_initial, p_links,
    p_inflow, p_chunk_states, p_chunk_steps, p_final, p_out, p_dz, p_dC, p_dA, p_dD,
    p_start, p_length, p_seq, p_cu_segments, p_walks, p_walk_order, num_walks, num_programs, T,
    stride_u, stride_delta, stride_z, stride_dz, E, width, G,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_LINKS: tl.constexpr, STORE_FINAL: tl.constexpr, STORE_OUT: tl.constexpr,
    LEAN: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One program walks the segments of walks i_p, i_p + num_programs, ... of the order, from first token to last.

    | output | shape | what |
    | --- | --- | --- |
    | p_out, p_dz | (T, E) | the output again, where STORE_OUT; the gradient of z |
    | p_dC | (blocks, T, N) | dC_t summed over the program's channels |
    | p_inflow | (T, E) | P_t, for the reverse sweep |
    | p_chunk_states | T/CHUNK matrices | the state at the end of a chunk that another chunk of its segment follows |
    | p_chunk_steps | (T/CHUNK + segments, E) | the sum of Δ of each chunk |
    | p_final | S matrices | the state at the end of each document, where STORE_FINAL |
    | p_dA | a matrix a program | the terms of dA that hold h, summed over the program's tokens |
    | p_dD | a row [E] a program | dD, summed over the program's tokens |
    """
    i_p, i_b, i_g, o_e, m_e = place_of(width, G, BE, EVEN)
    o_n, o_tile = tl.arange(0, N), tile_of(o_e, N, RUN)
    m_tile, size = m_e[None, :], size_of(E, N)
    b_A = tl.load(p_A + o_tile, mask=m_tile, other=0.0)  # [N, BE]
    b_D, b_bias = load_parameter(p_D, o_e, m_e, HAS_D), load_parameter(p_bias, o_e, m_e, HAS_BIAS)  # [BE]
    b_dA, b_dD = tl.zeros([N, BE], tl.float32), tl.zeros([BE], tl.float32)
    p_dC += i_b.to(tl.int64) * T * N

    for i_w in range(i_p, num_walks, num_programs):
        i_walk = tl.load(p_walk_order + i_w)
        for i_segment in range(tl.load(p_walks + i_walk), tl.load(p_walks + i_walk + 1)):
            i_seq, bos, n = segment_of(p_start, p_length, p_seq, i_segment)
            first = i_segment == tl.load(p_cu_segments + i_seq)
            b_h = state_before(
                p_initial, p_links, i_segment, i_seq, first, o_tile, m_tile, size, HAS_INITIAL, HAS_LINKS
            )  # [N, BE]
            chunks = tl.cdiv(n, CHUNK)
            for i_chunk in tl.range(chunks, disable_licm=LEAN):
                bot = bos + i_chunk * CHUNK
                b_elapsed = tl.zeros([BE], tl.float32)  # [BE]
                for i in tl.range(tl.minimum(n - i_chunk * CHUNK, CHUNK), num_stages=STAGES, disable_licm=LEAN):
                    t = bot + i
                    b_u = load_row(p_u, t * stride_u, o_e, m_e, WORDS).to(tl.float32)  # [BE]
                    b_delta = load_row(p_delta, t * stride_delta, o_e, m_e, WORDS)  # [BE]
                    b_dy = load_row(p_dout, t * E, o_e, m_e, WORDS).to(tl.float32)  # [BE]
                    b_B, b_C = load_pair(p_BC, t * G + i_g, N)  # [N]
                    b_step, _ = step_of(b_delta, b_bias, SOFTPLUS)
                    b_elapsed += b_step
                    b_h = tl.exp2(b_step[None, :] * b_A) * b_h  # [N, BE]: h' above
                    b_hC = b_h * b_C[:, None]  # [N, BE]
                    b_h = tl.fma((b_step * b_u)[None, :], b_B[:, None], b_h)
                    b_y = b_u
                    if HAS_Z or STORE_OUT:
                        b_y = tl.sum(b_h * b_C[:, None], 0) + b_D * b_u  # [BE]
                    if HAS_Z:
                        b_z = load_row(p_z, t * stride_z, o_e, m_e, WORDS).to(tl.float32)  # [BE]
                        b_sigmoid = sigmoid(b_z)
                        b_silu = b_z * b_sigmoid
                        b_dz = b_dy * b_y * (b_sigmoid + b_silu * (1.0 - b_sigmoid))  # [BE]
                        tl.store(p_dz + t * stride_dz + o_e, b_dz.to(p_dz.dtype.element_ty), mask=m_e)
                        b_dy = b_dy * b_silu
                        b_y = b_y * b_silu
                    if STORE_OUT:
                        tl.store(p_out + t * E + o_e, b_y.to(p_out.dtype.element_ty), mask=m_e)
                    tl.store(p_inflow + t * E + o_e, b_dy * tl.sum(b_hC * b_A, 0), mask=m_e)
                    b_dD += b_dy * b_u
                    tl.store(p_dC + t * N + o_n, sum_channels(b_h * b_dy[None, :]))
                    b_dA += (b_elapsed * b_dy)[None, :] * b_hC
                i_row = bos // CHUNK + i_chunk  # rows of different segments do not meet
                tl.store(p_chunk_steps + (i_row + i_segment) * E + o_e, b_elapsed, mask=m_e)
                if i_chunk + 1 < chunks:
                    tl.store(p_chunk_states + i_row * size + o_tile, b_h, mask=m_tile)
            if STORE_FINAL:
                if i_segment + 1 == tl.load(p_cu_segments + i_seq + 1):
                    tl.store(p_final + i_seq * size + o_tile, b_h, mask=m_tile)

    tl.store(p_dA + i_p * size + o_tile, b_dA, mask=m_tile)
    if HAS_D:
        tl.store(p_dD + i_p.to(tl.int64) * E + o_e, b_dD, mask=m_e)


@triton.jit(do_not_specialize=["num_walks", "num_programs", "T"])
def reverse_sweep_kernel(
    p_dout, p_u, p_delta, p_z, p_BC, p_A, p_D, p_bias, p_links, p_dlinks, p_dfinal,
    p_inflow, p_chunk_states, p_chunk_steps, p_final, p_du, p_ddelta, p_dB, p_dA, p_dbias, p_dinitial,
    p_start, p_length, p_seq, p_cu_segments, p_walks, p_walk_order, num_walks, num_programs, T,
    stride_u, stride_delta, stride_z, E, width, G,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_LINKS: tl.constexpr, HAS_DFINAL: tl.constexpr,
    LEAN: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One program walks the segments of walks i_p, i_p + num_programs, ... of the order, from last token to first.

    | output | shape | what |
    | --- | --- | --- |
    | p_du, p_ddelta | (T, E) | the gradients of u and delta |
    | p_dB | (blocks, T, N) | dB_t summed over the program's channels |
    | p_dinitial | S matrices | the gradient of each document's initial state, where HAS_INITIAL |
    | p_dA | a matrix a program | in place, the forward sweep's terms and those that hold g |
    | p_dbias | a row [E] a program | ddelta summed over the program's tokens |

    p_dfinal: the gradients of the final states. p_dlinks: the gradients of the states that pass the links. p_final is
    read where HAS_DFINAL. The forward sweep wrote p_inflow, p_chunk_states, p_chunk_steps and p_final.
    """
    i_p, i_b, i_g, o_e, m_e = place_of(width, G, BE, EVEN)
    o_n, o_tile = tl.arange(0, N), tile_of(o_e, N, RUN)
    m_tile, size = m_e[None, :], size_of(E, N)
    b_A = tl.load(p_A + o_tile, mask=m_tile, other=0.0)  # [N, BE]
    b_D, b_bias = load_parameter(p_D, o_e, m_e, HAS_D), load_parameter(p_bias, o_e, m_e, HAS_BIAS)  # [BE]
    b_dA = tl.load(p_dA + i_p * size + o_tile, mask=m_tile, other=0.0)  # [N, BE]
    b_dbias = tl.zeros([BE], tl.float32)
    p_dB += i_b.to(tl.int64) * T * N

    for i_w in range(i_p, num_walks, num_programs):
        i_walk = tl.load(p_walk_order + i_w)
        for i_segment in range(tl.load(p_walks + i_walk), tl.load(p_walks + i_walk + 1)):
            i_seq, bos, n = segment_of(p_start, p_length, p_seq, i_segment)
            b_q = tl.zeros([N, BE], tl.float32)  # [N, BE]: q above
            p_end = p_A  # the state the segment ends with; where b_q is 0 any finite tile will do
            if i_segment + 1 == tl.load(p_cu_segments + i_seq + 1):
                if HAS_DFINAL:
                    b_q = tl.load(p_dfinal + i_seq * size + o_tile, mask=m_tile, other=0.0)
                    p_end = p_final + i_seq * size
            else:
                if HAS_LINKS:
                    b_q = tl.load(p_dlinks + (i_segment - i_seq) * size + o_tile, mask=m_tile, other=0.0)
                    p_end = p_links + (i_segment - i_seq) * size
            chunks = tl.cdiv(n, CHUNK)
            for j in tl.range(chunks, disable_licm=LEAN):
                i_chunk = chunks - 1 - j
                i_row = bos // CHUNK + i_chunk
                if j > 0:
                    p_end = p_chunk_states + i_row * size
                b_elapsed = tl.load(p_chunk_steps + (i_row + i_segment) * E + o_e, mask=m_e, other=0.0)  # [BE]
                b_dlambda = b_q * tl.load(p_end + o_tile, mask=m_tile, other=0.0)  # [N, BE]
                b_dA += b_elapsed[None, :] * b_dlambda
                b_running = tl.sum(b_dlambda * b_A, 0)  # [BE]: Σ_n A dλ
                m = tl.minimum(n - i_chunk * CHUNK, CHUNK)
                eoc = bos + i_chunk * CHUNK + m - 1
                for i in tl.range(m, num_stages=STAGES, disable_licm=LEAN):
                    t = eoc - i
                    b_u = load_row(p_u, t * stride_u, o_e, m_e, WORDS).to(tl.float32)  # [BE]
                    b_delta = load_row(p_delta, t * stride_delta, o_e, m_e, WORDS)  # [BE]
                    b_dy = load_row(p_dout, t * E, o_e, m_e, WORDS).to(tl.float32)  # [BE]
                    b_inflow = tl.load(p_inflow + t * E + o_e, mask=m_e, other=0.0)  # [BE]
                    b_B, b_C = load_pair(p_BC, t * G + i_g, N)  # [N]
                    if HAS_Z:
                        b_z = load_row(p_z, t * stride_z, o_e, m_e, WORDS).to(tl.float32)  # [BE]
                        b_dy = b_dy * (b_z * sigmoid(b_z))
                    b_step, b_slope = step_of(b_delta, b_bias, SOFTPLUS)
                    b_drive = b_step * b_u  # [BE]
                    b_qB = b_q * b_B[:, None]  # [N, BE]
                    b_g = tl.fma(b_dy[None, :], b_C[:, None], b_q)  # [N, BE]
                    tl.store(p_dB + t * N + o_n, sum_channels(b_g * b_drive[None, :]))
                    b_sum = tl.sum(b_g * b_B[:, None], 0)  # [BE]
                    b_running += b_inflow - b_drive * tl.sum(b_qB * b_A, 0)
                    b_ddelta = (b_running * LN_2 + b_sum * b_u) * b_slope  # [BE]
                    b_du = b_sum * b_step + b_dy * b_D  # [BE]
                    tl.store(p_du + t * E + o_e, b_du.to(p_du.dtype.element_ty), mask=m_e)
                    tl.store(p_ddelta + t * E + o_e, b_ddelta.to(p_ddelta.dtype.element_ty), mask=m_e)
                    b_dbias += b_ddelta
                    b_dA -= (b_elapsed * b_drive)[None, :] * b_qB
                    b_elapsed -= b_step
                    b_q = tl.exp2(b_step[None, :] * b_A) * b_g
            if HAS_INITIAL:
                if i_segment == tl.load(p_cu_segments + i_seq):
                    tl.store(p_dinitial + i_seq * size + o_tile, b_q, mask=m_tile)

    tl.store(p_dA + i_p * size + o_tile, b_dA, mask=m_tile)
    if HAS_BIAS:
        tl.store(p_dbias + i_p.to(tl.int64) * E + o_e, b_dbias, mask=m_e)
