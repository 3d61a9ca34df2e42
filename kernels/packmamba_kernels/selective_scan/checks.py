"""The arguments of the packed selective scan, checked once, at the edge.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from packmamba_kernels.checks import check_cu_seqlens, check_schedule
from packmamba_kernels.runtime.triton_glue import runs_kernel
from packmamba_kernels.schedule import Schedule

STATES = (4, 8, 16, 32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    cu_seqlens: Tensor | None,
    schedule: Schedule | None,
    initial_states: Tensor | None,
) -> None:
    """Raises as `selective_scan` says. Looks at no value of a tensor."""
    required = {"u": u, "delta": delta, "A": A, "B": B, "C": C}
    optional = {"D": D, "z": z, "delta_bias": delta_bias, "initial_states": initial_states}
    given = required | {name: tensor for name, tensor in optional.items() if tensor is not None}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} must have dtype float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if (tensor.dtype == torch.float64) != (u.dtype == torch.float64):
            raise TypeError(f"all inputs are float64 or none is, but u is {u.dtype} and {name} is {tensor.dtype}")
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, but u is on {u.device}; they must be on one device")
    if runs_kernel(u) and u.dtype == torch.float64:
        raise TypeError(
            "u is torch.float64, which runs on the CPU only; the GPU kernels take float16, bfloat16 or float32"
        )
    if u.ndim != 2:
        raise ValueError(f"u must have shape (T, E), without a batch dimension, got {tuple(u.shape)}")
    num_tokens, channels = u.shape
    if num_tokens < 1 or channels < 1:
        raise ValueError(f"u must have at least one token and one channel, got shape {tuple(u.shape)}")
    for name, tensor in {"delta": delta, "z": z}.items():
        if tensor is not None and tensor.shape != u.shape:
            raise ValueError(f"{name} must have u's shape, got {tuple(tensor.shape)} for u of shape {tuple(u.shape)}")
    if A.ndim != 2 or A.shape[0] != channels:
        raise ValueError(f"A must have shape (E, N), got {tuple(A.shape)} for u of shape {tuple(u.shape)}")
    states = A.shape[1]
    if states not in STATES:
        raise ValueError(f"A has N = {states} states; N must be one of {', '.join(map(str, STATES))}")
    for name, tensor in {"B": B, "C": C}.items():
        if tensor.ndim not in (2, 3) or tensor.shape[0] != num_tokens or tensor.shape[-1] != states:
            raise ValueError(
                f"{name} must have shape (T, N) = {(num_tokens, states)} or (T, G, N), got {tuple(tensor.shape)} "
                f"for u of shape {tuple(u.shape)} and A of shape {tuple(A.shape)}"
            )
    if B.shape != C.shape:
        raise ValueError(f"B and C must have one shape, got {tuple(B.shape)} and {tuple(C.shape)}")
    if B.ndim == 3 and (B.shape[1] < 1 or channels % B.shape[1] != 0):
        raise ValueError(f"B of shape {tuple(B.shape)} has G = {B.shape[1]} groups, which do not divide E = {channels}")
    for name, tensor in {"u": u, "delta": delta, "z": z, "B": B, "C": C}.items():
        if tensor is not None and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dimension, got strides {tensor.stride()}")
    for name, tensor in {"D": D, "delta_bias": delta_bias}.items():
        if tensor is not None and tensor.shape != (channels,):
            raise ValueError(f"{name} must have shape (E,), got {tuple(tensor.shape)} for u of shape {tuple(u.shape)}")
    num_seqs = 1 if cu_seqlens is None else check_cu_seqlens(cu_seqlens, u, "u")
    if initial_states is not None:
        if initial_states.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"initial_states must be float32, or float64 as u, got {initial_states.dtype}")
        if initial_states.shape != (num_seqs, channels, states):
            raise ValueError(
                f"initial_states must have shape (S, E, N) = {(num_seqs, channels, states)}, "
                f"got {tuple(initial_states.shape)}"
            )
    if schedule is not None:
        check_schedule(schedule, cu_seqlens, u, "u")
