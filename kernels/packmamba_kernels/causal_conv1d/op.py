"""The public packed causal convolution: checks its arguments, chooses the implementation, knows its gradient.

T tokens in a pack · S sequences (documents) · E channels · W width of the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from packmamba_kernels.causal_conv1d import reference
from packmamba_kernels.checks import check_bounds, check_cu_seqlens, check_once, check_schedule
from packmamba_kernels.runtime.dispatch import direct, unobserved
from packmamba_kernels.runtime.triton_glue import runs_kernel
from packmamba_kernels.schedule import Schedule, build_segments, most_segments

MIN_WIDTH, MAX_WIDTH = 2, 8
ACTIVATIONS = (None, "silu")
SEGMENT_SIZES = (64, 256)
"""Tokens of the kernels' segments: the longer, the less is computed twice at their edges."""
MIN_PROGRAMS = 8192
"""Programs of 128 channels that keep a large GPU busy for three rounds; with fewer, segments are the shorter ones."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
        TypeError: a dtype that is not accepted, or an argument that is not a tensor.
        ValueError: a wrong rank, shapes that disagree (both are named), W or the activation out of range, tensors on
            different devices, channels that are not contiguous, or cu_seqlens that does not describe T tokens.
    """
    arguments = (x, weight, bias, activation, cu_seqlens, schedule, initial_states)
    inputs = (x, weight, bias, initial_states)
    unwatched = unobserved((*inputs, cu_seqlens))
    if unwatched:
        check_once(_check_arguments, *arguments)
    else:
        _check_arguments(*arguments)
    if cu_seqlens is None:
        cu_seqlens = torch.arange(2, dtype=torch.int32, device=x.device) * x.shape[0]
    rest = (cu_seqlens, *segment_tables(x, schedule), activation, return_final_states)
    if unwatched:
        out, final_states = _CausalConv1d.apply(*inputs, rest)  # pyright: ignore[reportGeneralTypeIssues]
    else:
        out, final_states = _causal_conv1d(*inputs, *rest)
    return (out, final_states) if return_final_states else out


def _check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    cu_seqlens: Tensor | None,
    schedule: Schedule | None,
    initial_states: Tensor | None,
) -> None:
    given = {"x": x, "weight": weight, "bias": bias, "initial_states": initial_states}
    for name, tensor in given.items():
        if tensor is None and name in ("bias", "initial_states"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} must have dtype float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}; they must be on one device")
    if x.ndim != 2:
        raise ValueError(f"x must have shape (T, E), without a batch dimension, got {tuple(x.shape)}")
    num_tokens, channels = x.shape
    if num_tokens < 1 or channels < 1:
        raise ValueError(f"x must have at least one token and one channel, got shape {tuple(x.shape)}")
    if x.stride(1) != 1 and channels > 1:
        raise ValueError(f"x must have contiguous channels (stride 1 in its last dimension), got strides {x.stride()}")
    if weight.ndim != 2 or weight.shape[0] != channels:
        raise ValueError(f"weight must have shape (E, W), got {tuple(weight.shape)} for x of shape {tuple(x.shape)}")
    width = weight.shape[1]
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ValueError(f"weight has width W = {width}; widths {MIN_WIDTH} to {MAX_WIDTH} are supported")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape (E,), got {tuple(bias.shape)} for x of shape {tuple(x.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
    num_seqs = 1 if cu_seqlens is None else check_cu_seqlens(cu_seqlens, x, "x")
    if initial_states is not None and initial_states.shape != (num_seqs, channels, width - 1):
        raise ValueError(
            f"initial_states must have shape (S, E, W-1) = {(num_seqs, channels, width - 1)}, "
            f"got {tuple(initial_states.shape)}"
        )
    if schedule is not None:
        check_schedule(schedule, cu_seqlens, x, "x")


def _enough_programs(num_segments: int, channels: int) -> bool:
    return num_segments * channels >= MIN_PROGRAMS * 128


def segment_tables(x: Tensor, schedule: Schedule | None) -> tuple[Tensor | None, ...]:
    """What the registered operators take for a schedule: start, length and seq of the segments that suit x; three times
    None without a schedule."""
    if schedule is None:
        return (None, None, None)
    chosen = schedule.chunks
    for level in schedule.levels:
        if level.size in SEGMENT_SIZES and _enough_programs(level.num_segments, x.shape[1]):
            chosen = level
    return chosen.start, chosen.length, chosen.seq


def _given_or_built_segments(
    x: Tensor, cu_seqlens: Tensor, start: Tensor | None, length: Tensor | None, seq: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if start is not None and length is not None and seq is not None:
        return start, length, seq
    num_tokens, channels = x.shape
    num_seqs = cu_seqlens.shape[0] - 1
    most = {size: most_segments(size, num_tokens, num_seqs) for size in SEGMENT_SIZES}
    size = max((size for size in most if _enough_programs(most[size], channels)), default=SEGMENT_SIZES[0])
    segments = build_segments(cu_seqlens, size, num_tokens)
    return segments.start, segments.length, segments.seq


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    cu_seqlens: Tensor,
    segment_start: Tensor | None,
    segment_length: Tensor | None,
    segment_seq: Tensor | None,
    activation: str | None,
    return_final_states: bool,
) -> tuple[Tensor, Tensor]:
    if segment_start is None or not x.is_cuda:
        check_bounds(cu_seqlens.cpu(), x.shape[0], "x")
    if runs_kernel(x):
        from packmamba_kernels.causal_conv1d import launch

        segments = _given_or_built_segments(x, cu_seqlens, segment_start, segment_length, segment_seq)
        return launch.forward(x, weight, bias, initial_states, cu_seqlens, segments, activation, return_final_states)
    return reference.forward(x, weight, bias, initial_states, cu_seqlens, activation, return_final_states)


def _backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    cu_seqlens: Tensor,
    segment_start: Tensor | None,
    segment_length: Tensor | None,
    segment_seq: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if runs_kernel(x):
        from packmamba_kernels.causal_conv1d import launch

        segments = _given_or_built_segments(x, cu_seqlens, segment_start, segment_length, segment_seq)
        return launch.backward(dout, dfinal_states, x, weight, bias, initial_states, cu_seqlens, segments, activation)
    return reference.backward(dout, dfinal_states, x, weight, bias, initial_states, cu_seqlens, activation)


_causal_conv1d = torch.library.custom_op("packmamba::causal_conv1d", _forward, mutates_args=())
_causal_conv1d_backward = torch.library.custom_op("packmamba::causal_conv1d_backward", _backward, mutates_args=())


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The registered forward, without a gradient."""
    return _forward(*arguments) if direct(arguments[:-2]) else _causal_conv1d(*arguments)


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The registered backward."""
    return _backward(*arguments) if direct(arguments[:-1]) else _causal_conv1d_backward(*arguments)


@_causal_conv1d.register_fake
def _(x, weight, bias, initial_states, cu_seqlens, start, length, seq, activation, return_final_states):
    out = x.new_empty(x.shape)
    if not return_final_states:
        return out, x.new_empty(0)
    return out, x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1], weight.shape[1] - 1)


@_causal_conv1d_backward.register_fake
def _(dout, dfinal_states, x, weight, bias, initial_states, cu_seqlens, start, length, seq, activation):
    optional = (x.new_empty(0) if given is None else given.new_empty(given.shape) for given in (bias, initial_states))
    return x.new_empty(x.shape), weight.new_empty(weight.shape), *optional


class _CausalConv1d(torch.autograd.Function):
    """The registered operator's autograd, past the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, rest = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.rest = rest
        return _forward(*tensors, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *boundaries, activation, return_final_states = ctx.rest
        dout, dfinal_states = grads
        saved = (*ctx.saved_tensors, *boundaries)
        return *_gradients(dout, dfinal_states, saved, activation, return_final_states), None


def _gradients(
    dout: Tensor | None,
    dfinal_states: Tensor | None,
    saved: tuple[Tensor, ...],
    activation: str | None,
    return_final_states: bool,
) -> tuple[Tensor | None, ...]:
    """Of the four inputs. saved: those, cu_seqlens and the tables."""
    if not return_final_states:
        dfinal_states = None
    if dout is None and dfinal_states is None:
        return (None,) * 4
    if dout is None:
        dout = torch.zeros_like(saved[0])
    grads = backward(dout, dfinal_states, *saved, activation)
    return tuple(None if given is None else grad for given, grad in zip(saved, grads, strict=False))


def _save_for_backward(ctx, inputs, output) -> None:
    *tensors, activation, return_final_states = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.flags = activation, return_final_states


def _registered_backward(ctx, dout: Tensor | None, dfinal_states: Tensor | None):
    return *_gradients(dout, dfinal_states, ctx.saved_tensors, *ctx.flags), *(None,) * 6


_causal_conv1d.register_autograd(_registered_backward, setup_context=_save_for_backward)


@register_flop_formula(torch.ops.packmamba.causal_conv1d)
def _forward_flops(x_shape, weight_shape, *args, **kwargs) -> int:
    """A multiplication and an addition for each token, channel and tap; the activation is not counted."""
    return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]


@register_flop_formula(torch.ops.packmamba.causal_conv1d_backward)
def _backward_flops(dout_shape, dfinal_shape, x_shape, weight_shape, *args, **kwargs) -> int:
    """The gradient of x and that of the filters, each as many as the forward; what is computed again is not counted."""
    return 4 * x_shape[0] * weight_shape[0] * weight_shape[1]
