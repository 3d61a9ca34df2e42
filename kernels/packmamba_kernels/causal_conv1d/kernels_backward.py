"""Triton kernels of the packed causal convolution's backward. Names and layouts as in `kernels_forward.py`.

A program walks down the tokens of several segments, one after the other, and leaves its sums for the filters in one row
of a scratch; a second kernel adds the rows in a fixed order.
"""

# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# (Triton compiles this file; read as Python, its static ranges and growing tuples have other types.)

from __future__ import annotations

import triton
import triton.language as tl

from packmamba_kernels.causal_conv1d.kernels_forward import load_filters, load_history
from packmamba_kernels.runtime.kernel_functions import sigmoid


@triton.jit(do_not_specialize=["num_segments", "segments_per_program"])
def causal_conv1d_bwd_kernel(
    dout, dfinal_states, x, weight, bias, initial_states, dx, dinitial_states, partial,
    cu_seqlens, segment_start, segment_length, segment_seq, stride_x, stride_dx, E, num_segments, segments_per_program,
    W: tl.constexpr, BE: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    HAS_DFINAL: tl.constexpr, SILU: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program walks segments_per_program segments. Inputs as in the forward; dout, dx: (T, E), rows of dx stride_dx
    apart; dfinal_states, dinitial_states: (S, E, W-1). partial: (programs along I, W+1, E), each program's sums for the
    filters and, last, for the bias.

    A walk goes W-1 tokens past the segment, inside its document, because a token's gradient comes from the W-1 outputs
    after it: `pending` holds the gradients of the last W-1 tokens, to which later outputs still add."""
    num_blocks = tl.cdiv(E, BE)
    i_e = tl.program_id(0) % num_blocks
    i_program = tl.program_id(0) // num_blocks
    o_e = i_e * BE + tl.arange(0, BE)  # [BE]
    m_e = o_e < E  # [BE]
    taps, b_bias = load_filters(weight, bias, o_e, m_e, W, HAS_BIAS, ACC)
    b_dbias = tl.zeros([BE], ACC)
    dtaps = ()
    for _ in tl.static_range(W):
        dtaps = dtaps + (tl.zeros([BE], ACC),)

    first_segment = i_program * segments_per_program
    for i_segment in range(first_segment, min(first_segment + segments_per_program, num_segments)):
        start = tl.load(segment_start + i_segment).to(tl.int64)
        length = tl.load(segment_length + i_segment)
        i_seq = tl.load(segment_seq + i_segment).to(tl.int64)
        bos = tl.load(cu_seqlens + i_seq).to(tl.int64)
        eos = tl.load(cu_seqlens + i_seq + 1).to(tl.int64)
        left = (eos - start).to(tl.int32)  # tokens from the segment's start to its document's end

        o_state = (i_seq * E + o_e) * (W - 1)  # [BE]
        p_x = x + start * stride_x  # a row, as p_out and the like
        p_dout = dout + start * E
        p_dx = dx + (start - (W - 1)) * stride_dx  # W-1 rows behind
        m_first = o_e < tl.where(start == bos, E, 0)  # [BE]
        m_past = o_e < tl.where(start != bos, E, 0)  # [BE]
        history = load_history(p_x, initial_states, o_e, o_state, m_past, m_first, stride_x, W, HAS_INITIAL, ACC)
        pending = ()
        for _ in tl.static_range(W - 1):
            pending = pending + (tl.zeros([BE], ACC),)

        for i in range(0, length + W - 1, ROWS):
            rows, douts = (), ()
            for r in tl.static_range(ROWS):
                m_r = o_e < tl.where(i + r < left, E, 0)  # [BE]
                rows = rows + (tl.load(p_x + r * stride_x + o_e, mask=m_r, other=0.0),)
                douts = douts + (tl.load(p_dout + r * E + o_e, mask=m_r, other=0.0),)
            for r in tl.static_range(ROWS):
                window = history + (rows[r].to(ACC),)
                history = window[1:]
                b_p = douts[r].to(ACC)  # [BE], the preactivation's gradient
                if SILU:
                    b_y = b_bias  # [BE]
                    for w in tl.static_range(W):
                        b_y += taps[w] * window[w]
                    b_s = sigmoid(b_y)  # [BE]
                    b_p = b_p * (b_s * (1.0 + b_y * (1.0 - b_s)))
                b_own = tl.where(i + r < length, b_p, 0.0)  # [BE], tokens past the segment are another program's
                b_dbias += b_own
                sums = ()
                for w in tl.static_range(W):
                    sums = sums + (dtaps[w] + b_own * window[w],)
                dtaps = sums

                b_dx = pending[0] + taps[0] * b_p  # [BE], of the token W-1 rows back, complete with this
                shifted = ()
                for w in tl.static_range(W - 2):
                    shifted = shifted + (pending[w + 1] + taps[w + 1] * b_p,)
                pending = shifted + (taps[W - 1] * b_p,)
                if HAS_DFINAL:
                    slot = i + r - left  # the token's place among the last W-1 of its document
                    p_f = dfinal_states + o_state + slot  # [BE]
                    m_f = o_e < tl.where((slot >= 0) & (slot < W - 1), E, 0)  # [BE]
                    b_dx += tl.load(p_f, mask=m_f, other=0.0).to(ACC)
                if HAS_INITIAL:  # the walk's first W-1 rows are the gradients of the initial state
                    p_0 = dinitial_states + o_state + (i + r)  # [BE]
                    m_0 = o_e < tl.where((start == bos) & (i + r < W - 1), E, 0)  # [BE]
                    tl.store(p_0, b_dx.to(dinitial_states.dtype.element_ty), mask=m_0)
                m_dx = o_e < tl.where((i + r >= W - 1) & (i + r < length + W - 1), E, 0)  # [BE]
                tl.store(p_dx + r * stride_dx + o_e, b_dx.to(dx.dtype.element_ty), mask=m_dx)
            p_x += ROWS * stride_x
            p_dout += ROWS * E
            p_dx += ROWS * stride_dx

    p_partial = partial + i_program.to(tl.int64) * (W + 1) * E + o_e  # [BE]
    for w in tl.static_range(W):
        tl.store(p_partial + w * E, dtaps[w], mask=m_e)
    tl.store(p_partial + W * E, b_dbias, mask=m_e)


@triton.jit(do_not_specialize=["num_parts"])
def causal_conv1d_sum_kernel(
    partial, dweight, dbias, num_parts, E,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, BE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dweight (E, W) and dbias (E,): each column of `partial`, (num_parts, W+1, E), added up in a fixed order. W + 1
    rows of programs, one for each tap and one for the bias."""
    blocks = tl.cdiv(E, BE)
    i_w, i_b = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    o_e = i_b * BE + tl.arange(0, BE)
    m_e = o_e < E
    b_sum = tl.zeros([ROWS, BE], partial.dtype.element_ty)  # [ROWS, BE]
    for i in range(0, num_parts, ROWS):
        o_part = i + tl.arange(0, ROWS)[:, None]
        b_sum += tl.load(
            partial + (o_part * (W + 1) + i_w).to(tl.int64) * E + o_e[None, :],
            mask=(o_part < num_parts) & m_e[None, :],
            other=0.0,
        )
    b_total = tl.sum(b_sum, 0)  # [BE]
    if i_w < W:
        tl.store(dweight + o_e * W + i_w, b_total.to(dweight.dtype.element_ty), mask=m_e)
    else:
        if HAS_BIAS:
            tl.store(dbias + o_e, b_total.to(dbias.dtype.element_ty), mask=m_e)
