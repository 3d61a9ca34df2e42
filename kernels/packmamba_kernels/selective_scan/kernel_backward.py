"""Triton kernels of the packed selective scan's backward. Names, layouts and the passing of states as in `kernel.py`.

The backward stores no states but those at the starts of 64-token chunks. With λ_t = Δ_t A, b_t = Δ_t u_t B_t,
c_t = dy_t C_t, and g_t the gradient of h_t, the gradient of λ obeys dλ_t = dλ_{t+1} + c_t h_t - b_t g_t, a running sum
from the end: h is needed only in a forward sweep, g only in a reverse one, and they never meet but at chunk ends, where
the sum restarts from the exact value (a g)_{next} h_end.
- forward sweep: h; emits dz, dC_t = Σ_e dy h and the inflow P_t = dy_t Σ_n A C_t h_t;
- reverse sweep: g; emits dB_t = Σ_e g Δ u, du = Δ Σ_n g B + dy D, dΔ_t = Σ_{s ≥ t} (P_s - Q_s) + u_t Σ_n g B, with
  Q_t = Δ_t u_t Σ_n A B_t g_t;
- dA = Σ_t Δ_t dλ_t, in which each c_s h_s - b_s g_s counts with the sum of Δ from the chunk's start to s.
A is in units of log2 here, so P and Q are too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from packmamba_kernels import schedule
from packmamba_kernels.selective_scan.kernel import channels_of, load_parameter, sigmoid, step_of, tile_of

LN_2 = tl.constexpr(0.6931471805599453)
CHUNK = tl.constexpr(schedule.CHUNK)


@triton.jit
def segment_grads_kernel(
    p_dout, p_delta, p_z, p_C, p_A, p_bias, p_links, p_elapsed,
    p_start, p_length, p_seq, p_cu_segments, p_order,
    stride_delta, stride_z, E, width, G,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Of a segment that follows another: the gradient it passes back when it gets none, and its sum of Δ."""
    blocks = G * tl.cdiv(width, BE)
    i_w, i_b = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_before = tl.load(p_order + i_w)
    i_seq = tl.load(p_seq + i_before)
    if i_before + 1 >= tl.load(p_cu_segments + i_seq + 1):
        return
    bos, n = tl.load(p_start + i_before + 1).to(tl.int64), tl.load(p_length + i_before + 1)
    i_g, o_e, m_e = channels_of(i_b, width, BE, EVEN)
    o_n, o_tile = tl.arange(0, N), tile_of(o_e, E, N, RUN)
    b_A = tl.load(p_A + o_tile, mask=m_e[None, :], other=0.0)  # [N, BE]
    b_bias = load_parameter(p_bias, o_e, m_e, HAS_BIAS)  # [BE]
    b_q, b_elapsed = tl.zeros([N, BE], tl.float32), tl.zeros([BE], tl.float32)

    t = bos + n - 1
    b_dout = tl.load(p_dout + t * E + o_e, mask=m_e, other=0.0)  # [BE]
    b_delta = tl.load(p_delta + t * stride_delta + o_e, mask=m_e, other=0.0)  # [BE]
    b_C = tl.load(p_C + (t * G + i_g) * N + o_n)  # [N]
    b_z = b_dout
    if HAS_Z:
        b_z = tl.load(p_z + t * stride_z + o_e, mask=m_e, other=0.0)  # [BE]
    for i in range(n):
        before = bos + tl.maximum(n - 2 - i, 0)
        next_dout = tl.load(p_dout + before * E + o_e, mask=m_e, other=0.0)
        next_delta = tl.load(p_delta + before * stride_delta + o_e, mask=m_e, other=0.0)
        next_C = tl.load(p_C + (before * G + i_g) * N + o_n)
        next_z = next_dout
        if HAS_Z:
            next_z = tl.load(p_z + before * stride_z + o_e, mask=m_e, other=0.0)
        b_dy = b_dout.to(tl.float32)
        if HAS_Z:
            b_gate = b_z.to(tl.float32)
            b_dy = b_dy * b_gate * sigmoid(b_gate)
        b_step, _ = step_of(b_delta, b_bias, SOFTPLUS)
        b_elapsed += b_step
        b_q = tl.exp2(b_step[None, :] * b_A) * (b_q + b_dy[None, :] * b_C[:, None])  # [N, BE]
        b_dout, b_delta, b_C, b_z = next_dout, next_delta, next_C, next_z
    i_link = (i_before - i_seq).to(tl.int64)
    tl.store(p_links + i_link * N * E + o_tile, b_q, mask=m_e[None, :])
    tl.store(p_elapsed + i_link * E + o_e, b_elapsed, mask=m_e)


@triton.jit(do_not_specialize=["num_seqs", "num_programs", "T"])
def forward_sweep_kernel(
    p_dout, p_u, p_delta, p_z, p_B, p_C, p_A, p_D, p_bias, p_initial, p_links,
    p_inflow, p_chunk_states, p_chunk_steps, p_final, p_out, p_dz, p_dC, p_dA, p_dD,
    p_start, p_length, p_seq, p_cu_segments, p_order, num_seqs, num_programs, T,
    stride_u, stride_delta, stride_z, E, width, G,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_LINKS: tl.constexpr, STORE_FINAL: tl.constexpr, STORE_OUT: tl.constexpr,
):  # fmt: skip
    """out again where it is wanted, dz, the parts of dC, and for the reverse sweep the inflow and what chunks end with,
    of every num_programs-th segment of the order; the share of dD that is theirs, and the part of dA that has h.

    p_inflow: (T, E). p_chunk_states: (T/CHUNK, N, E), the state at the end of each chunk that another chunk of its
    segment follows. p_chunk_steps: (T/CHUNK + segments, E), each chunk's sum of Δ. p_final: (S, N, E), the states that
    documents end with. p_dC: (blocks, T, N). p_dA: (programs, N, E). p_dD: (programs, E).
    """
    blocks = G * tl.cdiv(width, BE)
    i_p, i_b = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_g, o_e, m_e = channels_of(i_b, width, BE, EVEN)
    o_n, o_tile = tl.arange(0, N), tile_of(o_e, E, N, RUN)
    m_tile = m_e[None, :]
    size = tl.cast(N, tl.int64) * E
    b_A = tl.load(p_A + o_tile, mask=m_tile, other=0.0)  # [N, BE]
    b_D, b_bias = load_parameter(p_D, o_e, m_e, HAS_D), load_parameter(p_bias, o_e, m_e, HAS_BIAS)  # [BE]
    b_dA, b_dD = tl.zeros([N, BE], tl.float32), tl.zeros([BE], tl.float32)
    p_dC += i_b.to(tl.int64) * T * N

    for i_w in range(i_p, tl.load(p_cu_segments + num_seqs), num_programs):
        i_segment = tl.load(p_order + i_w)
        i_seq = tl.load(p_seq + i_segment)
        bos, n = tl.load(p_start + i_segment).to(tl.int64), tl.load(p_length + i_segment)
        b_h = tl.zeros([N, BE], tl.float32)  # [N, BE]
        if i_segment == tl.load(p_cu_segments + i_seq):
            if HAS_INITIAL:
                b_h = tl.load(p_initial + i_seq * size + o_tile, mask=m_tile, other=0.0)
        else:
            if HAS_LINKS:
                b_h = tl.load(p_links + (i_segment - i_seq - 1) * size + o_tile, mask=m_tile, other=0.0)
        chunks = tl.cdiv(n, CHUNK)
        for i_chunk in range(chunks):
            bot = bos + i_chunk * CHUNK
            m = tl.minimum(n - i_chunk * CHUNK, CHUNK)
            b_elapsed = tl.zeros([BE], tl.float32)  # [BE]
            b_u = tl.load(p_u + bot * stride_u + o_e, mask=m_e, other=0.0)  # [BE]
            b_delta = tl.load(p_delta + bot * stride_delta + o_e, mask=m_e, other=0.0)  # [BE]
            b_dout = tl.load(p_dout + bot * E + o_e, mask=m_e, other=0.0)  # [BE]
            b_B = tl.load(p_B + (bot * G + i_g) * N + o_n)  # [N]
            b_C = tl.load(p_C + (bot * G + i_g) * N + o_n)  # [N]
            b_z = b_dout
            if HAS_Z:
                b_z = tl.load(p_z + bot * stride_z + o_e, mask=m_e, other=0.0)  # [BE]
            for i in range(m):
                t = bot + i
                after = bot + tl.minimum(i + 1, m - 1)
                next_u = tl.load(p_u + after * stride_u + o_e, mask=m_e, other=0.0)
                next_delta = tl.load(p_delta + after * stride_delta + o_e, mask=m_e, other=0.0)
                next_dout = tl.load(p_dout + after * E + o_e, mask=m_e, other=0.0)
                next_B = tl.load(p_B + (after * G + i_g) * N + o_n)
                next_C = tl.load(p_C + (after * G + i_g) * N + o_n)
                next_z = next_dout
                if HAS_Z:
                    next_z = tl.load(p_z + after * stride_z + o_e, mask=m_e, other=0.0)

                b_x, b_dy = b_u.to(tl.float32), b_dout.to(tl.float32)
                b_step, _ = step_of(b_delta, b_bias, SOFTPLUS)
                b_elapsed += b_step
                b_h = tl.exp2(b_step[None, :] * b_A) * b_h + (b_step * b_x)[None, :] * b_B[:, None]  # [N, BE]
                b_hC = b_h * b_C[:, None]  # [N, BE]
                b_y = b_x
                if HAS_Z or STORE_OUT:
                    b_y = tl.sum(b_hC, 0) + b_D * b_x  # [BE]
                if HAS_Z:
                    b_gate = b_z.to(tl.float32)
                    b_sigmoid = sigmoid(b_gate)
                    b_silu = b_gate * b_sigmoid
                    b_dz = b_dy * b_y * (b_sigmoid + b_silu * (1.0 - b_sigmoid))  # [BE]
                    tl.store(p_dz + t * E + o_e, b_dz.to(p_dz.dtype.element_ty), mask=m_e)
                    b_dy = b_dy * b_silu
                    b_y = b_y * b_silu
                if STORE_OUT:
                    tl.store(p_out + t * E + o_e, b_y.to(p_out.dtype.element_ty), mask=m_e)
                tl.store(p_inflow + t * E + o_e, b_dy * tl.sum(b_hC * b_A, 0), mask=m_e)
                b_dD += b_dy * b_x
                b_dA += (b_elapsed * b_dy)[None, :] * b_hC
                tl.store(p_dC + t * N + o_n, tl.sum(b_h * b_dy[None, :], 1))
                b_u, b_delta, b_dout, b_B, b_C, b_z = next_u, next_delta, next_dout, next_B, next_C, next_z
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


@triton.jit(do_not_specialize=["num_seqs", "num_programs", "T"])
def reverse_sweep_kernel(
    p_dout, p_u, p_delta, p_z, p_B, p_C, p_A, p_D, p_bias, p_links, p_dlinks, p_dfinal,
    p_inflow, p_chunk_states, p_chunk_steps, p_final, p_du, p_ddelta, p_dB, p_dA, p_dbias, p_dinitial,
    p_start, p_length, p_seq, p_cu_segments, p_order, num_seqs, num_programs, T,
    stride_u, stride_delta, stride_z, E, width, G,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_LINKS: tl.constexpr, HAS_DFINAL: tl.constexpr,
):  # fmt: skip
    """du, ddelta, the parts of dB and dinitial of every num_programs-th segment of the order, and their share of
    ddelta_bias; adds to p_dA the part that has g.

    p_dfinal: (S, N, E), the gradients of the final states. p_dlinks: of the states that pass the links. p_final is read
    where there is p_dfinal. The rest as the forward sweep left it.
    """
    blocks = G * tl.cdiv(width, BE)
    i_p, i_b = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_g, o_e, m_e = channels_of(i_b, width, BE, EVEN)
    o_n, o_tile = tl.arange(0, N), tile_of(o_e, E, N, RUN)
    m_tile = m_e[None, :]
    size = tl.cast(N, tl.int64) * E
    b_A = tl.load(p_A + o_tile, mask=m_tile, other=0.0)  # [N, BE]
    b_D, b_bias = load_parameter(p_D, o_e, m_e, HAS_D), load_parameter(p_bias, o_e, m_e, HAS_BIAS)  # [BE]
    b_dA = tl.load(p_dA + i_p * size + o_tile, mask=m_tile, other=0.0)  # [N, BE]
    b_dbias = tl.zeros([BE], tl.float32)
    p_dB += i_b.to(tl.int64) * T * N

    for i_w in range(i_p, tl.load(p_cu_segments + num_seqs), num_programs):
        i_segment = tl.load(p_order + i_w)
        i_seq = tl.load(p_seq + i_segment)
        bos, n = tl.load(p_start + i_segment).to(tl.int64), tl.load(p_length + i_segment)
        b_q = tl.zeros([N, BE], tl.float32)  # [N, BE]: a g of the token after
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
        for j in range(chunks):
            i_chunk = chunks - 1 - j
            bot = bos + i_chunk * CHUNK
            m = tl.minimum(n - i_chunk * CHUNK, CHUNK)
            i_row = bos // CHUNK + i_chunk
            if j > 0:
                p_end = p_chunk_states + i_row * size
            b_elapsed = tl.load(p_chunk_steps + (i_row + i_segment) * E + o_e, mask=m_e, other=0.0)  # [BE]
            b_dlambda = b_q * tl.load(p_end + o_tile, mask=m_tile, other=0.0)  # [N, BE]
            b_dA += b_elapsed[None, :] * b_dlambda
            b_running = tl.sum(b_dlambda * b_A, 0)  # [BE]: Σ_n A dλ
            t = bot + m - 1
            b_u = tl.load(p_u + t * stride_u + o_e, mask=m_e, other=0.0)  # [BE]
            b_delta = tl.load(p_delta + t * stride_delta + o_e, mask=m_e, other=0.0)  # [BE]
            b_dout = tl.load(p_dout + t * E + o_e, mask=m_e, other=0.0)  # [BE]
            b_inflow = tl.load(p_inflow + t * E + o_e, mask=m_e, other=0.0)  # [BE]
            b_B = tl.load(p_B + (t * G + i_g) * N + o_n)  # [N]
            b_C = tl.load(p_C + (t * G + i_g) * N + o_n)  # [N]
            b_z = b_dout
            if HAS_Z:
                b_z = tl.load(p_z + t * stride_z + o_e, mask=m_e, other=0.0)  # [BE]
            for i in range(m):
                t = bot + m - 1 - i
                before = bot + tl.maximum(m - 2 - i, 0)
                next_u = tl.load(p_u + before * stride_u + o_e, mask=m_e, other=0.0)
                next_delta = tl.load(p_delta + before * stride_delta + o_e, mask=m_e, other=0.0)
                next_dout = tl.load(p_dout + before * E + o_e, mask=m_e, other=0.0)
                next_inflow = tl.load(p_inflow + before * E + o_e, mask=m_e, other=0.0)
                next_B = tl.load(p_B + (before * G + i_g) * N + o_n)
                next_C = tl.load(p_C + (before * G + i_g) * N + o_n)
                next_z = next_dout
                if HAS_Z:
                    next_z = tl.load(p_z + before * stride_z + o_e, mask=m_e, other=0.0)

                b_x, b_dy = b_u.to(tl.float32), b_dout.to(tl.float32)
                b_step, b_slope = step_of(b_delta, b_bias, SOFTPLUS)
                if HAS_Z:
                    b_gate = b_z.to(tl.float32)
                    b_dy = b_dy * (b_gate * sigmoid(b_gate))
                b_drive = b_step * b_x  # [BE]
                b_g = b_q + b_dy[None, :] * b_C[:, None]  # [N, BE]
                b_gB = b_g * b_B[:, None]  # [N, BE]
                b_sum = tl.sum(b_gB, 0)  # [BE]
                b_running += b_inflow - b_drive * tl.sum(b_gB * b_A, 0)
                b_ddelta = (b_running * LN_2 + b_sum * b_x) * b_slope  # [BE]
                tl.store(p_du + t * E + o_e, (b_sum * b_step + b_dy * b_D).to(p_du.dtype.element_ty), mask=m_e)
                tl.store(p_ddelta + t * E + o_e, b_ddelta.to(p_ddelta.dtype.element_ty), mask=m_e)
                b_dbias += b_ddelta
                b_dA -= (b_elapsed * b_drive)[None, :] * b_gB
                b_elapsed -= b_step
                tl.store(p_dB + t * N + o_n, tl.sum(b_g * b_drive[None, :], 1))
                b_q = tl.exp2(b_step[None, :] * b_A) * b_g
                b_u, b_delta, b_dout, b_inflow = next_u, next_delta, next_dout, next_inflow
                b_B, b_C, b_z = next_B, next_C, next_z
        if HAS_INITIAL:
            if i_segment == tl.load(p_cu_segments + i_seq):
                tl.store(p_dinitial + i_seq * size + o_tile, b_q, mask=m_tile)

    tl.store(p_dA + i_p * size + o_tile, b_dA, mask=m_tile)
    if HAS_BIAS:
        tl.store(p_dbias + i_p.to(tl.int64) * E + o_e, b_dbias, mask=m_e)
