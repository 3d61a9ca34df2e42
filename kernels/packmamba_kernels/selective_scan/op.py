"""The public packed selective scan: checks its arguments, chooses the implementation, knows its gradient.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C · I segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from packmamba_kernels.runtime.registration import Definition, Operator, fake_like
from packmamba_kernels.runtime.triton_glue import runs_kernel
from packmamba_kernels.schedule import CHUNK, SIZES, Documents, Schedule
from packmamba_kernels.selective_scan import reference
from packmamba_kernels.selective_scan.checks import check_arguments
from packmamba_kernels.selective_scan.inputs import ScanGradients, ScanInputs, ScanOptions, ScanResults
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
        TypeError: a dtype that is not accepted, or an argument that is not a tensor, a flag or a schedule.
        ValueError: a wrong rank, shapes that disagree (both are named), N not supported, G that does not divide E,
            tensors on different devices, a last dimension that is not contiguous, or cu_seqlens that does not
            describe T tokens.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, initial_states)
    options = ScanOptions(delta_softplus, return_final_states)
    return SELECTIVE_SCAN(inputs, options, cu_seqlens=cu_seqlens, schedule=schedule)


def segment_size(u: Tensor, count: Callable[[int], int]) -> int:
    """Tokens of a segment: the most that still give the kernels MIN_PROGRAMS. From T and E only, whatever the
    documents, so `count` is not asked."""
    if not runs_kernel(u):
        return CHUNK
    num_tokens, channels = u.shape
    for size in reversed(SIZES):
        if (num_tokens // size) * (channels // 64) >= MIN_PROGRAMS:
            return size
    return CHUNK


@cache
def _kernels() -> Any:
    """Imports triton, so it waits until a kernel is needed; the import statement alone takes a microsecond a call."""
    from packmamba_kernels.selective_scan import launch

    return launch


def _forward(inputs: ScanInputs, documents: Documents, options: ScanOptions) -> ScanResults:
    implementation = _kernels() if runs_kernel(inputs.u) else reference
    return implementation.forward(inputs, documents.segments(), options)


def _backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    inputs: ScanInputs,
    kept: Sequence[Tensor],
    documents: Documents,
    options: ScanOptions,
    into: Mapping[str, Tensor],
) -> ScanGradients:
    (starts,) = kept
    segments = documents.segments()
    if runs_kernel(inputs.u):
        return _kernels().backward(dout, dfinal_states, inputs, starts, segments, options, into)
    return reference.backward(dout, dfinal_states, inputs, starts, segments, options)


def _fake_forward(inputs: ScanInputs, documents: Documents, options: ScanOptions) -> ScanResults:
    u, (channels, states) = inputs.u, inputs.A.shape
    dtype = reference.state_dtype(u)
    num_seqs, num_segments = documents.cu_seqlens.shape[0] - 1, documents.offsets.num_segments
    if runs_kernel(u):
        starts = (num_segments - num_seqs, *matrix_shape(channels, states))
    else:
        starts = (num_segments, states, channels)
    final_states = (num_seqs, channels, states) if options.return_final_states else (0,)
    return ScanResults(u.new_empty(u.shape), u.new_empty(final_states, dtype=dtype), u.new_empty(starts, dtype=dtype))


def _fake_backward(inputs: ScanInputs, options: ScanOptions) -> ScanGradients:
    return ScanGradients(*map(fake_like, inputs), out=fake_like(inputs.u if options.return_out else None))  # pyright: ignore[reportArgumentType]


def _flops(shapes: ScanInputs) -> int:
    """For each token, channel and state: the decay's exponent and exponential, the state's two multiplications and one
    addition, the output's multiplication and addition. What does not grow with N is not counted."""
    return 7 * shapes.u[0] * shapes.A[0] * shapes.A[1]  # pyright: ignore[reportReturnType]


SELECTIVE_SCAN = Operator(
    Definition(
        name="selective_scan", inputs=ScanInputs, options=ScanOptions, results=ScanResults, gradients=ScanGradients,
        check=check_arguments, segment_size=segment_size, forward=_forward, backward=_backward,
        fake_forward=_fake_forward, fake_backward=_fake_backward, flops=_flops,
    )
)  # fmt: skip
