"""The public gated RMS normalisation: checks its arguments, chooses the implementation, knows its gradient.

It looks at each token by itself and takes no documents, so it is registered here and not by `runtime.registration`.

T tokens in a pack · E channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from packmamba_kernels.checks import check_once
from packmamba_kernels.gated_rms_norm import reference
from packmamba_kernels.gated_rms_norm.checks import check_arguments, group_size_of
from packmamba_kernels.gated_rms_norm.inputs import NormGradients, NormInputs, NormOptions
from packmamba_kernels.runtime.dispatch import may_bypass_dispatcher
from packmamba_kernels.runtime.registration import fake_like
from packmamba_kernels.runtime.triton_glue import runs_kernel


def gated_rms_norm(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    *,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Tensor:
    """out = weight · v / √(mean v² + eps) with v = y · silu(z); the mean over each group of `group_size` channels.

    The normalisation of Mamba-2 (Dao & Gu, arXiv 2405.21060, section 7.1), RMSNorm (arXiv 1910.07467) with a gate.
    Differentiable in y, z and weight, which are all that is saved: the gate and the statistics are computed again in
    the backward. Sums are fp32 (fp64 for fp64 y). `naive.gated_rms_norm_naive` is the definition.

    Args:
        y: (T, E), fp16, bf16, fp32 or fp64; rows may be strided, channels contiguous.
        z: (T, E), as y; any floating dtype. None: no gate.
        weight: (E,), any floating dtype.
        eps: what is added to the mean square.
        group_size: channels that are normalised together; divides E; at most 8,192. None: all E.
        norm_before_gate: whether the gate multiplies what is normalised: out = weight · y / √(mean y² + eps) · silu(z).

    Returns:
        out (T, E) in y's dtype.

    Raises:
        TypeError: a dtype that is not accepted, or an argument that is not a tensor or a flag.
        ValueError: shapes that disagree (both are named), channels that are not contiguous, tensors on different
            devices, eps or group_size out of range.
    """
    inputs, options = NormInputs(y, z, weight), NormOptions(eps, group_size_of(y, group_size), norm_before_gate)
    if may_bypass_dispatcher(inputs):
        check_once(_check, *inputs, *options)
        return _Bypass.apply(options, *inputs)  # pyright: ignore[reportReturnType]
    check_arguments(inputs, options)
    return _registered_forward(*inputs, *options)


def _check(*flat: Any) -> None:
    check_arguments(NormInputs(*flat[:3]), NormOptions(*flat[3:]))


@cache
def _kernels() -> Any:
    """Imports triton, so it waits until a kernel is needed; the import statement alone takes a microsecond a call."""
    from packmamba_kernels.gated_rms_norm import launch

    return launch


def _forward(inputs: NormInputs, options: NormOptions) -> Tensor:
    return (_kernels() if runs_kernel(inputs.y) else reference).forward(inputs, options)


def _backward(dout: Tensor, inputs: NormInputs, options: NormOptions) -> NormGradients:
    return (_kernels() if runs_kernel(inputs.y) else reference).backward(dout, inputs, options)


class _Bypass(torch.autograd.Function):
    """The operator's autograd, past torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, options: NormOptions, *tensors: Any) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.options = options
        return _forward(NormInputs(*tensors), options)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *_gradients(dout, NormInputs(*ctx.saved_tensors), ctx.options)


def _gradients(dout: Tensor, inputs: NormInputs, options: NormOptions) -> tuple[Tensor | None, ...]:
    """Differentiating them again is refused by the registered backward, through which they then go."""
    if not torch.is_grad_enabled() and may_bypass_dispatcher((dout, *inputs)):
        return _backward(dout, inputs, options)
    dy, dz, dweight = _registered_backward(dout, *inputs, *options)
    return dy, None if inputs.z is None else dz, dweight


# --- what is registered: the same on flat arguments -------------------------------------------------------------------

_CALL = "Tensor y, Tensor? z, Tensor weight, float eps, int group_size, bool norm_before_gate"


@torch.library.custom_op("packmamba::gated_rms_norm", mutates_args=(), schema=f"({_CALL}) -> Tensor")
def _registered_forward(y: Any, z: Any, weight: Any, eps: Any, group_size: Any, norm_before_gate: Any) -> Tensor:
    return _forward(NormInputs(y, z, weight), NormOptions(eps, group_size, norm_before_gate))


@torch.library.custom_op(
    "packmamba::gated_rms_norm_backward", mutates_args=(), schema=f"(Tensor dout, {_CALL}) -> (Tensor, Tensor, Tensor)"
)
def _registered_backward(
    dout: Any, y: Any, z: Any, weight: Any, eps: Any, group_size: Any, norm_before_gate: Any
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _backward(dout, NormInputs(y, z, weight), NormOptions(eps, group_size, norm_before_gate))
    return _without_none(gradients)


def _without_none(gradients: NormGradients) -> tuple[Tensor, Tensor, Tensor]:
    """An empty tensor for None, which no operator may return."""
    dy, dz, dweight = gradients
    return dy, dy.new_empty(0) if dz is None else dz, dweight


@_registered_forward.register_fake
def _fake_forward(y: Any, *_: Any) -> Any:
    return fake_like(y)


@_registered_backward.register_fake
def _fake_backward(dout: Any, y: Any, z: Any, weight: Any, *_: Any) -> Any:
    return _without_none(NormGradients(*map(fake_like, (y, z, weight))))  # pyright: ignore[reportArgumentType]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = NormOptions(*inputs[3:])


def _registered_gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(dout, NormInputs(*ctx.saved_tensors), ctx.options), None, None, None


_registered_forward.register_autograd(_registered_gradients, setup_context=_save_for_backward)
