"""The arguments of the packed causal convolution, checked once, at the edge.

T tokens in a pack · S sequences (documents) · E channels · W width of the convolution.
"""

from __future__ import annotations

from typing import Any

from packmamba_kernels.causal_conv1d.inputs import ConvInputs, ConvOptions
from packmamba_kernels.checks import check_cu_seqlens, check_flags, check_schedule, check_tensors, check_tokens

MIN_WIDTH, MAX_WIDTH = 2, 8
ACTIVATIONS = (None, "silu")


def check_arguments(inputs: ConvInputs, options: ConvOptions, cu_seqlens: Any, schedule: Any) -> None:
    """Raises as `causal_conv1d` says. Looks at no value of a tensor."""
    check_tensors(inputs._asdict(), optional=("bias", "initial_states"))
    x, weight, bias, initial_states = inputs
    check_tokens(x, "x")
    channels = x.shape[1]
    if x.stride(1) != 1 and channels > 1:
        raise ValueError(f"x must have contiguous channels (stride 1 in its last dimension), got strides {x.stride()}")
    if weight.ndim != 2 or weight.shape[0] != channels:
        raise ValueError(f"weight must have shape (E, W), got {tuple(weight.shape)} for x of shape {tuple(x.shape)}")
    width = weight.shape[1]
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ValueError(f"weight has width W = {width}; widths {MIN_WIDTH} to {MAX_WIDTH} are supported")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape (E,), got {tuple(bias.shape)} for x of shape {tuple(x.shape)}")
    if options.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'silu', got {options.activation!r}")
    check_flags(return_final_states=options.return_final_states)
    num_seqs = 1 if cu_seqlens is None else check_cu_seqlens(cu_seqlens, x, "x")
    if initial_states is not None and initial_states.shape != (num_seqs, channels, width - 1):
        raise ValueError(
            f"initial_states must have shape (S, E, W-1) = {(num_seqs, channels, width - 1)}, "
            f"got {tuple(initial_states.shape)}"
        )
    if schedule is not None:
        check_schedule(schedule, cu_seqlens, x, "x")
