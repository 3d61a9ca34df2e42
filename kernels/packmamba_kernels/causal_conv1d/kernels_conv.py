"""Triton kernels of the packed causal convolution.

A program owns BE channels and walks down the tokens of a segment, which lies inside one document, holding the last W-1
inputs of each channel in registers: every input is loaded once, channels are contiguous across lanes, lanes never talk
to each other, and a reset is where the walk begins (the history of a document's first segment is its initial state).
ROWS tokens are loaded at a time, so that many loads are in flight.

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

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(b_y):
    """1 / (1 + e^-y). In fp32 by a reciprocal square root, which the hardware has as it is: a division is five
    instructions more."""
    if b_y.dtype == tl.float64:
        return 1.0 / (1.0 + tl.exp(-b_y))
    b_r = tl.rsqrt(1.0 + tl.exp2(-b_y * LOG2_E))
    return b_r * b_r


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
    p_x,
    p_initial,
    o_e,
    o_state,
    m_past,
    m_first,
    stride_x,
    W: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    ACC: tl.constexpr,
):
    """The W-1 inputs before the segment's first token, oldest first: a tuple of blocks [BE].

    p_x: that first token's row. o_state: the channels' offsets in the document's state. m_past, m_first: the channels,
    where the segment has predecessors in its document, and where it has none.
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
    x,  # (T, E), rows stride_x apart
    weight,  # (E, W)
    bias,  # (E,)
    initial_states,  # (S, E, W-1)
    out,  # (T, E)
    final_states,  # (S, E, W-1)
    cu_seqlens,  # (S+1,)
    segment_start,  # (I,)
    segment_length,  # (I,)
    segment_seq,  # (I,)
    stride_x,
    E,
    W: tl.constexpr,
    BE: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    STORE_FINAL: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
):
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


@triton.jit(do_not_specialize=["num_segments", "segments_per_program"])
def causal_conv1d_bwd_kernel(
    dout,  # (T, E)
    dfinal_states,  # (S, E, W-1)
    x,  # (T, E), rows stride_x apart
    weight,  # (E, W)
    bias,  # (E,)
    initial_states,  # (S, E, W-1)
    dx,  # (T, E)
    dinitial_states,  # (S, E, W-1)
    partial,  # (programs along I, W+1, E): each program's sums for the filters and, last, the bias
    cu_seqlens,  # (S+1,)
    segment_start,  # (I,)
    segment_length,  # (I,)
    segment_seq,  # (I,)
    stride_x,
    E,
    num_segments,
    segments_per_program,
    W: tl.constexpr,
    BE: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_DFINAL: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
):
    """The walk goes W-1 tokens past the segment, inside its document, because a token's gradient comes from the W-1
    outputs after it: `pending` holds the gradients of the last W-1 tokens, complete but for outputs to come."""
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
        p_dx = dx + (start - (W - 1)) * E  # W-1 rows behind
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
                tl.store(p_dx + r * E + o_e, b_dx.to(dx.dtype.element_ty), mask=m_dx)
            p_x += ROWS * stride_x
            p_dout += ROWS * E
            p_dx += ROWS * E

    p_partial = partial + i_program.to(tl.int64) * (W + 1) * E + o_e  # [BE]
    for w in tl.static_range(W):
        tl.store(p_partial + w * E, dtaps[w], mask=m_e)
    tl.store(p_partial + W * E, b_dbias, mask=m_e)


@triton.jit(do_not_specialize=["num_parts"])
def causal_conv1d_sum_kernel(
    partial,  # (num_parts, W+1, E)
    dweight,  # (E, W)
    dbias,  # (E,)
    num_parts,
    E,
    W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dweight and dbias, each column of `partial` added up in a fixed order, by W + 1 rows of programs."""
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
