"""Triton kernels of the packed causal convolution: forward, and helpers of both directions.

A program owns BE channels and walks down the tokens of one segment, a run of tokens inside one document. It holds the
last W-1 inputs of each channel in registers, so every input is loaded once. Channels are contiguous across lanes, and
lanes never exchange values. A reset is where a walk begins: the history of a document's first segment is its initial
state. ROWS tokens are loaded at a time, so that many loads are in flight.

Masks compare channels with E, or with 0 where a scalar condition fails: Triton's interpreter cannot combine a block of
truth values with a single one.

Names: p_ pointers, b_ blocks of values, o_ offsets, m_ masks; bos and eos are a document's first token and its end.
T tokens in a pack · S sequences (documents) · E channels · W width · I segments.
"""

# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# (Triton compiles this file; read as Python, its static ranges and growing tuples have other types.)

from __future__ import annotations

import triton
import triton.language as tl

from packmamba_kernels.runtime.kernel_functions import sigmoid


@triton.jit
def load_filters(p_weight, p_bias, o_e, m_e, W: tl.constexpr, HAS_BIAS: tl.constexpr, ACC: tl.constexpr):
    """The taps as a tuple of W blocks [BE], oldest input first, and the bias [BE]."""
    taps = ()
    for w in tl.static_range(W):
        taps = taps + (tl.load(p_weight + o_e * W + w, mask=m_e, other=0.0).to(ACC),)  # [BE]
    b_bias = tl.zeros_like(taps[0])  # [BE]
    if HAS_BIAS:
        b_bias = tl.load(p_bias + o_e, mask=m_e, other=0.0).to(ACC)
    return taps, b_bias


@triton.jit
def load_history(
    p_x, p_initial, o_e, o_state, m_past, m_first, stride_x,
    W: tl.constexpr, HAS_INITIAL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The W-1 inputs before the segment's first token, oldest first: a tuple of blocks [BE].

    p_x: that first token's row. o_state: the channels' offsets in the document's state. m_past: every channel where an
    earlier segment of the document precedes this one, else none; m_first: the opposite.
    """
    history = ()
    for j in tl.static_range(W - 1):
        b_h = tl.load(p_x - (W - 1 - j) * stride_x + o_e, mask=m_past, other=0.0).to(ACC)  # [BE]
        if HAS_INITIAL:
            b_0 = tl.load(p_initial + o_state + j, mask=m_first, other=0.0).to(ACC)  # [BE]
            b_h = tl.where(m_first, b_0, b_h)
        history = history + (b_h,)
    return history


@triton.jit
def causal_conv1d_fwd_kernel(
    x, weight, bias, initial_states, out, final_states, cu_seqlens, segment_start, segment_length, segment_seq,
    stride_x, E,
    W: tl.constexpr, BE: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    STORE_FINAL: tl.constexpr, SILU: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program walks one segment. x: (T, E), rows stride_x apart. weight: (E, W). bias: (E,). out: (T, E).
    initial_states, final_states: (S, E, W-1). cu_seqlens: (S+1,). segment_start and the like: (I,)."""
    num_blocks = tl.cdiv(E, BE)
    i_e = tl.program_id(0) % num_blocks
    i_segment = tl.program_id(0) // num_blocks
    start = tl.load(segment_start + i_segment).to(tl.int64)
    length = tl.load(segment_length + i_segment)
    if length == 0:
        return
    i_seq = tl.load(segment_seq + i_segment).to(tl.int64)
    bos = tl.load(cu_seqlens + i_seq).to(tl.int64)
    eos = tl.load(cu_seqlens + i_seq + 1).to(tl.int64)

    o_e = i_e * BE + tl.arange(0, BE)  # [BE]
    m_e = o_e < E  # [BE]
    o_state = (i_seq * E + o_e) * (W - 1)  # [BE]
    p_x = x + start * stride_x  # a row, as p_out and the like
    p_out = out + start * E

    taps, b_bias = load_filters(weight, bias, o_e, m_e, W, HAS_BIAS, ACC)
    m_first = o_e < tl.where(start == bos, E, 0)  # [BE]
    m_past = o_e < tl.where(start != bos, E, 0)  # [BE]
    history = load_history(p_x, initial_states, o_e, o_state, m_past, m_first, stride_x, W, HAS_INITIAL, ACC)
    for i in range(0, length, ROWS):
        rows, masks = (), ()
        for r in tl.static_range(ROWS):
            m_r = o_e < tl.where(i + r < length, E, 0)  # [BE]
            rows, masks = rows + (tl.load(p_x + r * stride_x + o_e, mask=m_r, other=0.0),), masks + (m_r,)
        for r in tl.static_range(ROWS):
            window = history + (rows[r].to(ACC),)
            history = window[1:]
            b_y = b_bias  # [BE]
            for w in tl.static_range(W):
                b_y += taps[w] * window[w]
            if SILU:
                b_y = b_y * sigmoid(b_y)
            tl.store(p_out + r * E + o_e, b_y.to(out.dtype.element_ty), mask=masks[r])
        p_x += ROWS * stride_x
        p_out += ROWS * E

    if STORE_FINAL:
        if start + length == eos:
            for j in tl.static_range(W - 1):
                t = eos - (W - 1) + j
                p_t = x + t * stride_x + o_e  # [BE]
                b_f = tl.load(p_t, mask=o_e < tl.where(t >= bos, E, 0), other=0.0)  # [BE]
                if HAS_INITIAL:  # a short document reaches back into its initial state
                    p_0 = initial_states + o_state + (t - bos + W - 1)  # [BE]
                    b_0 = tl.load(p_0, mask=o_e < tl.where(t < bos, E, 0), other=0.0)  # [BE]
                    b_f = tl.where(t < bos, b_0.to(b_f.dtype), b_f)
                tl.store(final_states + o_state + j, b_f, mask=m_e)
