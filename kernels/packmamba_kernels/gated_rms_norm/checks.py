"""The arguments of the gated RMS normalisation, checked once, at the edge. T tokens in a pack · E channels."""

from __future__ import annotations

import math

from torch import Tensor

from packmamba_kernels.checks import check_flags, check_tensors, check_tokens
from packmamba_kernels.gated_rms_norm.inputs import NormInputs, NormOptions

MAX_GROUP = 8192
"""Channels of a group, which a program holds in registers. The largest models have groups of 1,024 to 5,120."""


def check_arguments(inputs: NormInputs, options: NormOptions) -> None:
    """Raises as `gated_rms_norm` says. Looks at no value of a tensor."""
    check_tensors(inputs._asdict(), optional=("z",))
    y, z, weight = inputs
    check_tokens(y, "y")
    channels = y.shape[1]
    for name, x in (("y", y), ("z", z)):
        if x is not None and x.stride(-1) != 1 and channels > 1:
            raise ValueError(
                f"{name} must have contiguous channels (stride 1 in its last dimension), got strides {x.stride()}"
            )
    if z is not None and z.shape != y.shape:
        raise ValueError(f"z must have y's shape (T, E) = {tuple(y.shape)}, got {tuple(z.shape)}")
    if weight.shape != (channels,):
        raise ValueError(f"weight must have shape (E,), got {tuple(weight.shape)} for y of shape {tuple(y.shape)}")
    _check_options(options, channels)


def _check_options(options: NormOptions, channels: int) -> None:
    eps, group_size, norm_before_gate = options
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not (eps >= 0 and math.isfinite(eps)):
        raise ValueError(f"eps must be a number from 0, got {eps!r}")
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1 or channels % group_size:
        raise ValueError(f"group_size must be a number of channels that divides E = {channels}, got {group_size!r}")
    if group_size > MAX_GROUP:
        raise ValueError(f"group_size is {group_size}; groups of up to {MAX_GROUP} channels are supported")
    check_flags(norm_before_gate=norm_before_gate)


def group_size_of(y: Tensor, group_size: int | None) -> int:
    """The size of a group: all channels where it is not given."""
    if group_size is None:
        return y.shape[-1] if isinstance(y, Tensor) and y.ndim else 1
    return group_size
