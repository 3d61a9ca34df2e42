"""The arguments of the packed selective scan, checked once, at the edge.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C.
"""

from __future__ import annotations

from typing import Any

import torch

from packmamba_kernels.checks import check_cu_seqlens, check_flags, check_schedule, check_tensors, check_tokens
from packmamba_kernels.runtime.triton_glue import runs_kernel
from packmamba_kernels.selective_scan.inputs import ScanInputs, ScanOptions

STATES = (4, 8, 16, 32, 64, 128)


def check_arguments(inputs: ScanInputs, options: ScanOptions, cu_seqlens: Any, schedule: Any) -> None:
    """Raises as `selective_scan` says. Looks at no value of a tensor."""
    check_tensors(inputs._asdict(), optional=("D", "z", "delta_bias", "initial_states"))
    check_flags(delta_softplus=options.delta_softplus, return_final_states=options.return_final_states)
    u, A, B, C, initial_states = inputs.u, inputs.A, inputs.B, inputs.C, inputs.initial_states
    for name, tensor in inputs._asdict().items():
        if tensor is not None and (tensor.dtype == torch.float64) != (u.dtype == torch.float64):
            raise TypeError(f"all inputs are float64 or none is, but u is {u.dtype} and {name} is {tensor.dtype}")
    if runs_kernel(u) and u.dtype == torch.float64:
        raise TypeError(
            "u is torch.float64, which runs on the CPU only; the GPU kernels take float16, bfloat16 or float32"
        )
    check_tokens(u, "u")
    num_tokens, channels = u.shape
    for name, tensor in {"delta": inputs.delta, "z": inputs.z}.items():
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
    for name, tensor in {"u": u, "delta": inputs.delta, "z": inputs.z, "B": B, "C": C}.items():
        if tensor is not None and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dimension, got strides {tensor.stride()}")
    for name, tensor in {"D": inputs.D, "delta_bias": inputs.delta_bias}.items():
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
