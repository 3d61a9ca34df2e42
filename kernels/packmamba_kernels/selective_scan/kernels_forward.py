"""Triton kernels of the packed selective scan: forward, and how state passes between the segments of a long document.

A program owns BE channels and goes down the tokens of a walk, which is one segment or several neighbouring ones. A
segment is a run of tokens inside one document. The state [N, BE] stays in registers, and a reset is where the walk of a
segment begins. A document longer than one segment takes three launches: `segment_states` walks each segment that
another one follows from a zero state, `fold_states` combines the results along the document, and then every segment is
walked from its true state. A link joins a segment to the one that follows it; the link behind segment i of document s
has row i - s in the tables of links.

The loops over tokens are pipelined: while one token is computed, the inputs of the next ones are being copied to shared
memory and occupy no registers. A prefetch into registers does not work, because the move to this token's registers at
the end of an iteration waits for the load.

Names: p_ pointers, b_ blocks of values, o_ offsets, m_ masks; bos is a segment's first token, i_w a program's place in
the order of walks or segments. B and C lie as pairs in contiguous fp32 (T, G, N, 2), A and states as `tile_of` says, A
times log2(e). Numbers that change from pack to pack are not specialised on, so that nothing compiles again.
T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C.
"""

# pyright: reportGeneralTypeIssues=false
# tl.range is no iterator outside of a kernel.
from __future__ import annotations

import triton
import triton.language as tl

from packmamba_kernels.runtime.kernel_functions import LOG2_E, sigmoid
from packmamba_kernels.selective_scan import layout

OCTET = tl.constexpr(layout.OCTET)
STAGES = tl.constexpr(3)
"""Tokens of a pipelined loop whose inputs are in shared memory or on their way to it."""


@triton.jit
def softplus(b_x):
    """log(1 + e^x), and its derivative, the sigmoid of x.

    With y = e^-|x| it is max(x, 0) + log(1 + y), and log(1 + y) is y times a polynomial fitted to log(1 + y) / y on
    [0, 1]. The relative error stays below 2e-7, for the smallest results too."""
    b_y = tl.exp2(tl.abs(b_x) * -LOG2_E)
    b_p = b_y * 0.005126102361828089 - 0.029074065387248993
    b_p = b_p * b_y + 0.0775160863995552
    b_p = b_p * b_y - 0.13602247834205627
    b_p = b_p * b_y + 0.19076880812644958
    b_p = b_p * b_y - 0.2483539879322052
    b_p = b_p * b_y + 0.3331812024116516
    b_p = b_p * b_y - 0.4999944567680359
    b_p = b_p * b_y + 0.9999999403953552
    b_r = tl.rsqrt(1.0 + b_y)
    return tl.maximum(b_x, 0.0) + b_y * b_p, tl.where(b_x < 0.0, b_y, 1.0) * b_r * b_r


@triton.jit
def step_of(b_delta, b_bias, SOFTPLUS: tl.constexpr):
    """The step size Δ [BE], and its derivative by delta [BE]."""
    b_step = b_delta.to(tl.float32) + b_bias  # [BE]
    b_slope = tl.full(b_step.shape, 1.0, tl.float32)  # [BE]
    if SOFTPLUS:
        b_step, b_slope = softplus(b_step)
    return b_step, b_slope


@triton.jit
def place_of(width, G, BE: tl.constexpr, EVEN: tl.constexpr):
    """This program's place i_w along the tokens, its channel block i_b, the block's group i_g, the block's channels
    [BE], and a mask of those that exist [BE].

    A group has `width` channels, and a block lies inside one group. EVEN: BE divides the width."""
    blocks = tl.cdiv(width, BE)
    i_w, i_b = tl.program_id(0) // (G * blocks), tl.program_id(0) % (G * blocks)
    o_in_group = (i_b % blocks) * BE + tl.arange(0, BE)
    m_e = tl.full([BE], True, tl.int1)
    if not EVEN:
        m_e = o_in_group < width
    return i_w, i_b, i_b // blocks, (i_b // blocks) * width + o_in_group, m_e


@triton.jit
def segment_of(p_start, p_length, p_seq, i_segment):
    """A segment's document, its first token and its length."""
    return tl.load(p_seq + i_segment), tl.load(p_start + i_segment).to(tl.int64), tl.load(p_length + i_segment)


@triton.jit
def tile_of(o_e, N: tl.constexpr, RUN: tl.constexpr):
    """Offsets [N, BE] into a matrix (ceil(E/8), N, 8), which holds eight channels together. The offset of a state is
    that of its channel plus a constant, so it takes no register.

    RUN: adjacent channels that a lane takes. Without that hint a lane takes as many as fit one load instruction, and
    the lanes that are left share the states."""
    o_tile = (o_e // OCTET * (N * OCTET) + o_e % OCTET)[None, :] + tl.arange(0, N)[:, None] * OCTET
    return tl.max_contiguous(o_tile, [1, RUN])


@triton.jit
def size_of(E, N: tl.constexpr):
    """Elements of a matrix (ceil(E/8), N, 8)."""
    return tl.cast(tl.cdiv(E, OCTET), tl.int64) * (N * OCTET)


@triton.jit
def load_pair(p_BC, i_row, N: tl.constexpr):
    """B and C of one token and group, [N] each. They lie as pairs, so one copy to shared memory brings both."""
    return tl.split(tl.reshape(tl.load(p_BC + i_row * (2 * N) + tl.arange(0, 2 * N)), [N, 2]))


@triton.jit
def load_drive(p_u, p_delta, t, stride_u, stride_delta, o_e, m_e):
    """Rows [BE] of u, in fp32, and delta."""
    b_u = tl.load(p_u + t * stride_u + o_e, mask=m_e, other=0.0).to(tl.float32)
    return b_u, tl.load(p_delta + t * stride_delta + o_e, mask=m_e, other=0.0)


@triton.jit
def load_row(p_x, o_row, o_e, m_e, WORDS: tl.constexpr):
    """A token's row [BE], which begins o_row elements behind p_x.

    WORDS: a row of 16-bit elements is loaded as BE/2 words of 32 bits, the narrowest that an asynchronous copy takes,
    where a warp has fewer channels than two a lane. Every channel of the block has to exist then.
    """
    if WORDS and p_x.dtype.element_ty.primitive_bitwidth == 16:
        o_even, _ = tl.split(tl.reshape(o_e, [o_e.shape[0] // 2, 2]))  # [BE/2]
        p_words = (p_x + o_row).to(tl.pointer_type(tl.int32), bitcast=True)
        b_words = tl.load(p_words + o_even // 2)  # [BE/2]
        b_even = b_words.to(tl.int16).to(p_x.dtype.element_ty, bitcast=True)
        b_odd = (b_words >> 16).to(tl.int16).to(p_x.dtype.element_ty, bitcast=True)
        return tl.reshape(tl.join(b_even, b_odd), [o_e.shape[0]])
    else:
        return tl.load(p_x + o_row + o_e, mask=m_e, other=0.0)


@triton.jit
def load_parameter(p_x, o_e, m_e, GIVEN: tl.constexpr):
    """A row [BE] of fp32 parameters, zeros where there is none."""
    b_x = tl.zeros(o_e.shape, tl.float32)
    if GIVEN:
        b_x = tl.load(p_x + o_e, mask=m_e, other=0.0).to(tl.float32)
    return b_x


@triton.jit
def state_before(
    p_initial, p_links, i_segment, i_seq, first, o_tile, m_tile, size,
    HAS_INITIAL: tl.constexpr, HAS_LINKS: tl.constexpr,
):  # fmt: skip
    """The state [N, BE] that a segment starts from: its document's initial state, or the one of the link before it."""
    b_h = tl.zeros(o_tile.shape, tl.float32)  # [N, BE]
    if first:
        if HAS_INITIAL:
            b_h = tl.load(p_initial + i_seq * size + o_tile, mask=m_tile, other=0.0)
    else:
        if HAS_LINKS:
            b_h = tl.load(p_links + (i_segment - i_seq - 1) * size + o_tile, mask=m_tile, other=0.0)
    return b_h


@triton.jit
def selective_scan_fwd_kernel(
    p_u, p_delta, p_z, p_BC, p_A, p_D, p_bias, p_initial, p_links, p_out, p_final,
    p_start, p_length, p_seq, p_cu_segments, p_walks, p_walk_order,
    stride_u, stride_delta, stride_z, E, width, G,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_LINKS: tl.constexpr, STORE_FINAL: tl.constexpr,
):  # fmt: skip
    """One program takes the segments of one walk. It writes `out`, and the final states of documents that end there."""
    i_w, _i_b, i_g, o_e, m_e = place_of(width, G, BE, EVEN)
    i_walk = tl.load(p_walk_order + i_w)
    i_first, i_end = tl.load(p_walks + i_walk), tl.load(p_walks + i_walk + 1)
    if i_first == i_end:
        return
    o_tile = tile_of(o_e, N, RUN)
    m_tile, size = m_e[None, :], size_of(E, N)
    b_A = tl.load(p_A + o_tile, mask=m_tile, other=0.0)  # [N, BE]
    b_D, b_bias = load_parameter(p_D, o_e, m_e, HAS_D), load_parameter(p_bias, o_e, m_e, HAS_BIAS)  # [BE]

    for i_segment in range(i_first, i_end):
        i_seq, bos, n = segment_of(p_start, p_length, p_seq, i_segment)
        first = i_segment == tl.load(p_cu_segments + i_seq)
        b_h = state_before(p_initial, p_links, i_segment, i_seq, first, o_tile, m_tile, size, HAS_INITIAL, HAS_LINKS)
        for i in tl.range(n, num_stages=STAGES):
            t = bos + i
            b_u, b_delta = load_drive(p_u, p_delta, t, stride_u, stride_delta, o_e, m_e)  # [BE]
            b_B, b_C = load_pair(p_BC, t * G + i_g, N)  # [N]
            b_step, _ = step_of(b_delta, b_bias, SOFTPLUS)
            b_h = tl.fma(tl.exp2(b_step[None, :] * b_A), b_h, (b_step * b_u)[None, :] * b_B[:, None])  # [N, BE]
            b_y = tl.sum(b_h * b_C[:, None], 0) + b_D * b_u  # [BE]
            if HAS_Z:
                b_z = tl.load(p_z + t * stride_z + o_e, mask=m_e, other=0.0).to(tl.float32)  # [BE]
                b_y = b_y * (b_z * sigmoid(b_z))
            tl.store(p_out + t * E + o_e, b_y.to(p_out.dtype.element_ty), mask=m_e)
        if STORE_FINAL:
            if i_segment + 1 == tl.load(p_cu_segments + i_seq + 1):
                tl.store(p_final + i_seq * size + o_tile, b_h, mask=m_tile)


@triton.jit
def segment_states_kernel(
    p_u, p_delta, p_BC, p_A, p_bias, p_links, p_elapsed,
    p_start, p_length, p_seq, p_cu_segments, p_order,
    stride_u, stride_delta, E, width, G,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One program walks one segment that another follows. It writes the state that the segment ends with when it starts
    from zero (p_links), and the sum of its Δ (p_elapsed)."""
    i_w, _i_b, i_g, o_e, m_e = place_of(width, G, BE, EVEN)
    i_segment = tl.load(p_order + i_w)
    i_seq = tl.load(p_seq + i_segment)
    if i_segment + 1 >= tl.load(p_cu_segments + i_seq + 1):
        return
    bos, n = tl.load(p_start + i_segment).to(tl.int64), tl.load(p_length + i_segment)
    o_tile = tile_of(o_e, N, RUN)
    b_A = tl.load(p_A + o_tile, mask=m_e[None, :], other=0.0)  # [N, BE]
    b_bias = load_parameter(p_bias, o_e, m_e, HAS_BIAS)  # [BE]
    b_h, b_elapsed = tl.zeros([N, BE], tl.float32), tl.zeros([BE], tl.float32)

    for i in tl.range(n, num_stages=STAGES):
        t = bos + i
        b_u, b_delta = load_drive(p_u, p_delta, t, stride_u, stride_delta, o_e, m_e)  # [BE]
        b_B, _ = load_pair(p_BC, t * G + i_g, N)  # [N]
        b_step, _ = step_of(b_delta, b_bias, SOFTPLUS)
        b_elapsed += b_step
        b_h = tl.fma(tl.exp2(b_step[None, :] * b_A), b_h, (b_step * b_u)[None, :] * b_B[:, None])  # [N, BE]
    i_link = (i_segment - i_seq).to(tl.int64)
    tl.store(p_links + i_link * size_of(E, N) + o_tile, b_h, mask=m_e[None, :])
    tl.store(p_elapsed + i_link * E + o_e, b_elapsed, mask=m_e)


@triton.jit
def fold_states_kernel(
    p_A, p_ends, p_links, p_elapsed, p_seq, p_cu_segments, p_order, E,
    N: tl.constexpr, BE: tl.constexpr, RUN: tl.constexpr, HAS_ENDS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """One program follows the links of one document and turns, in place, what each segment adds to a state into the
    state that passes the link: x = exp(A ΣΔ) x + added.

    It starts from the document's initial state, or, with REVERSE, from the gradient of its final state (p_ends). The
    program of the document's first segment does the work, those of its other segments return at once.
    """
    blocks = tl.cdiv(E, BE)
    i_w, i_b = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_segment = tl.load(p_order + i_w)
    i_seq = tl.load(p_seq + i_segment)
    i_first, i_end = tl.load(p_cu_segments + i_seq), tl.load(p_cu_segments + i_seq + 1)
    if i_segment != i_first:
        return
    o_e = i_b * BE + tl.arange(0, BE)
    m_e, o_tile, size = o_e < E, tile_of(o_e, N, RUN), size_of(E, N)
    b_A = tl.load(p_A + o_tile, mask=m_e[None, :], other=0.0)  # [N, BE]
    b_x = tl.zeros([N, BE], tl.float32)  # [N, BE]
    if HAS_ENDS:
        b_x = tl.load(p_ends + i_seq * size + o_tile, mask=m_e[None, :], other=0.0)
    links = i_end - i_first - 1
    for j in range(links):
        i_link = (i_first - i_seq + (links - 1 - j if REVERSE else j)).to(tl.int64)
        b_added = tl.load(p_links + i_link * size + o_tile, mask=m_e[None, :], other=0.0)  # [N, BE]
        b_elapsed = tl.load(p_elapsed + i_link * E + o_e, mask=m_e, other=0.0)  # [BE]
        b_x = tl.exp2(b_elapsed[None, :] * b_A) * b_x + b_added
        tl.store(p_links + i_link * size + o_tile, b_x, mask=m_e[None, :])
