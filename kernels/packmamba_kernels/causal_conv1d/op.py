"""The public packed causal convolution: checks its arguments, chooses the implementation, knows its gradient.

T tokens in a pack · S sequences (documents) · E channels · W width of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from packmamba_kernels.causal_conv1d import reference
from packmamba_kernels.causal_conv1d.checks import check_arguments
from packmamba_kernels.causal_conv1d.inputs import ConvGradients, ConvInputs, ConvOptions, ConvResults
from packmamba_kernels.runtime.registration import Definition, Operator, fake_like
from packmamba_kernels.runtime.triton_glue import runs_kernel
from packmamba_kernels.schedule import Documents, Schedule

SEGMENT_SIZES = (64, 256)
"""Tokens of the kernels' segments: the longer, the less is computed twice at their edges."""
MIN_PROGRAMS = 8192
"""Programs of 128 channels that keep a large GPU busy for three rounds; with fewer, segments are the shorter ones."""


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
    schedule: Schedule | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """out[t] = activation(bias + Σ_w weight[:, w] · x[t - (W-1) + w]), the sum staying inside t's document.

    The short convolution of the Mamba block (Gu & Dao, arXiv 2312.00752), one filter for each channel. Differentiable
    in x, weight, bias and initial_states, through out and the final states; out's activation input is computed again
    in the backward, so x is all that is saved. Sums are fp32 (fp64 for fp64 x). `naive.causal_conv1d_naive` is the
    definition.

    Args:
        x: (T, E), fp16, bf16, fp32 or fp64; rows may be strided (a half of a (T, 2E) tensor), channels contiguous.
        weight: (E, W) with W from 2 to 8; any floating dtype, weight[:, W-1] meets the token itself.
        bias: (E,), any floating dtype.
        activation: None or "silu".
        cu_seqlens: int32 (S+1,) on x's device, starts at 0, ends at T, strictly increasing; None: one document.
        schedule: the work items of the same documents (`Packing.schedule`), on x's device. Without it a CUDA call
            copies cu_seqlens to the host to check them, and builds the work items in the forward and the backward.
        initial_states: (S, E, W-1), the inputs before each document's first token; None: zeros.
        return_final_states: whether to return the last W-1 inputs of each document too.

    Returns:
        out (T, E) in x's dtype, or (out, final_states) with final_states (S, E, W-1) in x's dtype, which reach back
        into the initial state where a document is shorter than W-1 tokens.

    Raises:
        TypeError: a dtype that is not accepted, or an argument that is not a tensor, a flag or a schedule.
        ValueError: a wrong rank, shapes that disagree (both are named), W or the activation out of range, tensors on
            different devices, channels that are not contiguous, or cu_seqlens that does not describe T tokens.
    """
    inputs = ConvInputs(x, weight, bias, initial_states)
    options = ConvOptions(activation, return_final_states)
    return CAUSAL_CONV1D(inputs, options, cu_seqlens=cu_seqlens, schedule=schedule)


def segment_size(x: Tensor, count: Callable[[int], int]) -> int:
    """Tokens of a segment: the most that still give the kernels MIN_PROGRAMS."""
    shorter, longer = SEGMENT_SIZES
    return longer if count(longer) * x.shape[1] >= MIN_PROGRAMS * 128 else shorter


@cache
def _kernels() -> Any:
    """Imports triton, so it waits until a kernel is needed; the import statement alone takes a microsecond a call."""
    from packmamba_kernels.causal_conv1d import launch

    return launch


def _forward(inputs: ConvInputs, documents: Documents, options: ConvOptions) -> ConvResults:
    if runs_kernel(inputs.x):
        return _kernels().forward(inputs, documents.cu_seqlens, documents.segments(), options)
    return reference.forward(inputs, documents.cu_seqlens, options)


def _backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    inputs: ConvInputs,
    kept: Sequence[Tensor],
    documents: Documents,
    options: ConvOptions,
    into: Mapping[str, Tensor],
) -> ConvGradients:
    if runs_kernel(inputs.x):
        segments = documents.segments()
        return _kernels().backward(dout, dfinal_states, inputs, documents.cu_seqlens, segments, options, into)
    return reference.backward(dout, dfinal_states, inputs, documents.cu_seqlens, options)


def _fake_forward(inputs: ConvInputs, documents: Documents, options: ConvOptions) -> ConvResults:
    x, (channels, width) = inputs.x, inputs.weight.shape
    final_states = (documents.cu_seqlens.shape[0] - 1, channels, width - 1) if options.return_final_states else (0,)
    return ConvResults(x.new_empty(x.shape), x.new_empty(final_states))


def _fake_backward(inputs: ConvInputs, options: ConvOptions) -> ConvGradients:
    return ConvGradients(*map(fake_like, inputs))  # pyright: ignore[reportArgumentType]


def _flops(shapes: ConvInputs) -> int:
    """A multiplication and an addition for each token, channel and tap; the activation is not counted."""
    return 2 * shapes.x[0] * shapes.weight[0] * shapes.weight[1]  # pyright: ignore[reportReturnType]


CAUSAL_CONV1D = Operator(
    Definition(
        name="causal_conv1d", inputs=ConvInputs, options=ConvOptions, results=ConvResults, gradients=ConvGradients,
        check=check_arguments, segment_size=segment_size, forward=_forward, backward=_backward,
        fake_forward=_fake_forward, fake_backward=_fake_backward, flops=_flops,
    )
)  # fmt: skip
