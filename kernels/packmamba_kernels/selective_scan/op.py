"""The public packed selective scan: checks its arguments, chooses the implementation, knows its gradient.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C · I segments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from packmamba_kernels.checks import check_bounds, check_once
from packmamba_kernels.runtime.dispatch import direct, unobserved
from packmamba_kernels.runtime.triton_glue import runs_kernel
from packmamba_kernels.schedule import CHUNK, SIZES, Schedule, Segments, build_segments, most_segments
from packmamba_kernels.selective_scan import reference
from packmamba_kernels.selective_scan.checks import check_arguments
from packmamba_kernels.selective_scan.layout import matrix_shape

MIN_PROGRAMS = 4096
"""Programs of 64 channels and one segment that keep a large GPU busy. Shorter segments only as far as it takes: each
that another one follows is walked twice in either direction."""


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    cu_seqlens: Tensor | None = None,
    schedule: Schedule | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(Δ_t A) h_{t-1} + Δ_t u_t B_t, y_t = Σ_n C_t h_t + D u_t, out_t = y_t · silu(z_t), inside each document.

    The selective state-space model of Mamba (Gu & Dao, arXiv 2312.00752, algorithm 2), Δ = delta + delta_bias, through
    softplus where asked. h starts at a document's first token, from its initial state or 0. Differentiable in every
    tensor, through out and the final states; the backward computes states again and keeps none but those where
    segments begin. States and sums are fp32 whatever the inputs (fp64 for fp64 inputs). The same inputs give the same
    bits; a document's bits depend neither on the other documents nor on its place in the pack, given T and E.
    `naive.selective_scan_naive` is the definition.

    Args:
        u: (T, E), fp16, bf16, fp32, or fp64 (all inputs then). Rows of u, delta, z, B and C may be strided (a half of a
            (T, 2E) tensor, columns of a projection); their last dimension is contiguous.
        delta: (T, E), the step size before bias and softplus.
        A: (E, N), negative for a decaying state. N is 4, 8, 16, 32, 64 or 128.
        B, C: (T, N), or (T, G, N) with group g for the channels g·E/G to (g+1)·E/G.
        D: (E,), the skip.
        z: (T, E), the gate.
        delta_bias: (E,).
        delta_softplus: whether Δ = softplus(delta + delta_bias).
        cu_seqlens: int32 (S+1,) on u's device, starts at 0, ends at T, strictly increasing; None: one document.
        schedule: the work items of the same documents (`Packing.schedule`), on u's device. Without it they are built in
            the call, and a CUDA call waits to check the values of cu_seqlens; with it nothing waits.
        initial_states: (S, E, N) fp32 (fp64 with fp64 inputs), h before each document's first token; None: zeros.
        return_final_states: whether to return h at each document's last token too.

    Returns:
        out (T, E) in u's dtype, or (out, final_states) with final_states (S, E, N) fp32 (fp64 for fp64 inputs).

    Raises:
        TypeError: a dtype that is not accepted, or an argument that is not a tensor.
        ValueError: a wrong rank, shapes that disagree (both are named), N not supported, G that does not divide E,
            tensors on different devices, a last dimension that is not contiguous, or cu_seqlens that does not
            describe T tokens.
    """
    arguments = (u, delta, A, B, C, D, z, delta_bias, cu_seqlens, schedule, initial_states)
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_states)
    unwatched = unobserved((*inputs, cu_seqlens))
    if unwatched:
        check_once(check_arguments, *arguments)
    else:
        check_arguments(*arguments)
    if cu_seqlens is None:
        cu_seqlens = torch.arange(2, dtype=torch.int32, device=u.device) * u.shape[0]
    rest = (cu_seqlens, *segment_tables(u, schedule), delta_softplus, return_final_states)
    if unwatched:
        out, final_states = _SelectiveScan.apply(*inputs, rest)  # pyright: ignore[reportGeneralTypeIssues]
    else:
        out, final_states, _ = _selective_scan(*inputs, *rest)
    return (out, final_states) if return_final_states else out


def segment_tables(u: Tensor, schedule: Schedule | None) -> tuple[Tensor | None, ...]:
    """What the registered operators take for a schedule: start, length, seq, cu_segments, order, items and item_order
    of the segments that suit u; seven times None without a schedule."""
    if schedule is None:
        return (None,) * 7
    size = _segment_size(u)
    return _tables(next(level for level in schedule.levels if level.size == size))


def _tables(segments: Segments) -> reference.Tables:
    s = segments
    return s.start, s.length, s.seq, s.cu_segments, s.order, s.items, s.item_order


def _segment_size(u: Tensor) -> int:
    """Tokens of a segment: the most that still give the kernels MIN_PROGRAMS. Of T and E only, not of the documents."""
    if not runs_kernel(u):
        return CHUNK
    num_tokens, channels = u.shape
    enough = (size for size in SIZES if (num_tokens // size) * (channels // 64) >= MIN_PROGRAMS)
    return max(enough, default=CHUNK)


def _given_or_built(u: Tensor, cu_seqlens: Tensor, tables: tuple[Tensor | None, ...]) -> reference.Tables:
    if tables[0] is None:
        return _tables(build_segments(cu_seqlens, _segment_size(u), u.shape[0]))
    return tables  # pyright: ignore[reportReturnType]


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_states: Tensor | None,
    cu_seqlens: Tensor,
    segment_start: Tensor | None,
    segment_length: Tensor | None,
    segment_seq: Tensor | None,
    cu_segments: Tensor | None,
    segment_order: Tensor | None,
    items: Tensor | None,
    item_order: Tensor | None,
    delta_softplus: bool,
    return_final_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, the final states, and the states where segments begin: all of them (I, N, E) from the reference, those that
    pass from one segment to the next (I-S, ceil(E/8), N, 8) from the kernels."""
    if segment_start is None or not u.is_cuda:
        check_bounds(cu_seqlens.cpu(), u.shape[0], "u")
    tables = (segment_start, segment_length, segment_seq, cu_segments, segment_order, items, item_order)
    tables = _given_or_built(u, cu_seqlens, tables)
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_states)
    if runs_kernel(u):
        from packmamba_kernels.selective_scan import launch

        return launch.forward(*inputs, tables, delta_softplus, return_final_states)
    return reference.forward(*inputs, tables, delta_softplus, return_final_states)


def _backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_states: Tensor | None,
    starts: Tensor,
    cu_seqlens: Tensor,
    segment_start: Tensor | None,
    segment_length: Tensor | None,
    segment_seq: Tensor | None,
    cu_segments: Tensor | None,
    segment_order: Tensor | None,
    items: Tensor | None,
    item_order: Tensor | None,
    delta_softplus: bool,
    return_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, delta, A, B, C, D, z, delta_bias and initial_states, empty for an input that is None; then
    out, computed again where `return_out`, else empty."""
    tables = (segment_start, segment_length, segment_seq, cu_segments, segment_order, items, item_order)
    tables = _given_or_built(u, cu_seqlens, tables)
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_states)
    if runs_kernel(u):
        from packmamba_kernels.selective_scan import launch

        grads = launch.backward(dout, dfinal_states, *inputs, starts, tables, delta_softplus, return_out)
    else:
        grads = reference.backward(dout, dfinal_states, *inputs, starts, tables, delta_softplus, return_out)
    return tuple(u.new_empty(0) if grad is None else grad for grad in grads)  # pyright: ignore[reportReturnType]


_selective_scan = torch.library.custom_op("packmamba::selective_scan", _forward, mutates_args=())
_selective_scan_backward = torch.library.custom_op("packmamba::selective_scan_backward", _backward, mutates_args=())


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The registered forward, without a gradient."""
    return _forward(*arguments) if direct(arguments[:-2]) else _selective_scan(*arguments)


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The registered backward."""
    return _backward(*arguments) if direct(arguments[:-2]) else _selective_scan_backward(*arguments)


@_selective_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, initial_states, cu_seqlens, *tables_and_flags):
    *tables, _, return_final_states = tables_and_flags
    dtype = reference.state_dtype(u)
    num_seqs, (channels, states) = cu_seqlens.shape[0] - 1, A.shape
    if tables[0] is None:
        num_segments = most_segments(_segment_size(u), u.shape[0], num_seqs)
    else:
        num_segments = tables[0].shape[0]
    if runs_kernel(u):
        starts = (num_segments - num_seqs, *matrix_shape(channels, states))
    else:
        starts = (num_segments, states, channels)
    return (
        u.new_empty(u.shape),
        u.new_empty((num_seqs, channels, states) if return_final_states else 0, dtype=dtype),
        u.new_empty(starts, dtype=dtype),
    )


@_selective_scan_backward.register_fake
def _(dout, dfinal_states, u, delta, A, B, C, D, z, delta_bias, initial_states, *rest):
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_states, u if rest[-1] else None)
    return tuple(u.new_empty(0) if given is None else given.new_empty(given.shape) for given in inputs)


class _SelectiveScan(torch.autograd.Function):
    """The registered operator's autograd, past the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, rest = inputs
        out, final_states, starts = _forward(*tensors, *rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, starts)
        ctx.rest = rest
        return out, final_states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *boundaries, delta_softplus, return_final_states = ctx.rest
        dout, dfinal_states = grads
        saved = (*ctx.saved_tensors, *boundaries)
        return *_gradients(dout, dfinal_states, saved, delta_softplus, return_final_states), None


def _gradients(
    dout: Tensor | None,
    dfinal_states: Tensor | None,
    saved: tuple[Tensor | None, ...],
    delta_softplus: bool,
    return_final_states: bool,
) -> tuple[Tensor | None, ...]:
    """Of the nine inputs. saved: those, the states where segments begin, cu_seqlens and the tables."""
    inputs = saved[:9]
    if not return_final_states:
        dfinal_states = None
    if dout is None and dfinal_states is None:
        return (None,) * 9
    if dout is None:
        assert inputs[0] is not None
        dout = torch.zeros_like(inputs[0])
    grads = backward(dout, dfinal_states, *saved, delta_softplus, False)
    return tuple(None if given is None else grad for given, grad in zip(inputs, grads, strict=False))


def _save_for_backward(ctx, inputs, output) -> None:
    tensors, boundaries, flags = inputs[:9], inputs[9:-2], inputs[-2:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[2], *boundaries)
    ctx.mark_non_differentiable(output[2])
    ctx.flags = flags


def _registered_backward(ctx, dout: Tensor | None, dfinal_states: Tensor | None, _):
    return *_gradients(dout, dfinal_states, ctx.saved_tensors, *ctx.flags), *(None,) * 10


_selective_scan.register_autograd(_registered_backward, setup_context=_save_for_backward)


@register_flop_formula(torch.ops.packmamba.selective_scan)
def _forward_flops(u_shape, delta_shape, A_shape, *args, **kwargs) -> int:
    """Of each token, channel and state: the decay's exponent and exponential, the state's two multiplications and one
    addition, the output's multiplication and addition. What does not grow with N is not counted."""
    return 7 * u_shape[0] * A_shape[0] * A_shape[1]


@register_flop_formula(torch.ops.packmamba.selective_scan_backward)
def _backward_flops(dout_shape, dfinal_shape, u_shape, delta_shape, A_shape, *args, **kwargs) -> int:
    """Twice the forward, by the usual convention; what is computed again is not counted."""
    return 14 * u_shape[0] * A_shape[0] * A_shape[1]
