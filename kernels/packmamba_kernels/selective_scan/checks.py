"""The arguments of the packed selective scan, checked once, at the edge.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from packmamba_kernels._triton import runs_kernel
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
    num_seqs = 1 if cu_seqlens is None else _check_cu_seqlens(cu_seqlens, u)
    if initial_states is not None:
        if initial_states.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"initial_states must be float32, or float64 as u, got {initial_states.dtype}")
        if initial_states.shape != (num_seqs, channels, states):
            raise ValueError(
                f"initial_states must have shape (S, E, N) = {(num_seqs, channels, states)}, "
                f"got {tuple(initial_states.shape)}"
            )
    if schedule is not None:
        _check_schedule(schedule, cu_seqlens, u)


def _check_cu_seqlens(cu_seqlens: Tensor, u: Tensor) -> int:
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens must be a torch.int32 tensor, got {type(cu_seqlens).__name__}")
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be a torch.int32 tensor, got {cu_seqlens.dtype}")
    if cu_seqlens.device != u.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, but u is on {u.device}; they must be on one device")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must have shape (S+1,) with S >= 1, got {tuple(cu_seqlens.shape)}")
    return cu_seqlens.shape[0] - 1


def _check_schedule(schedule: Schedule, cu_seqlens: Tensor | None, u: Tensor) -> None:
    if cu_seqlens is None:
        raise ValueError("a schedule needs the cu_seqlens it was built from, got cu_seqlens=None")
    table = schedule.chunks.cu_segments
    if table.shape != cu_seqlens.shape:
        raise ValueError(
            f"schedule was built for {table.shape[0] - 1} documents, but cu_seqlens has {cu_seqlens.shape[0] - 1}"
        )
    if schedule.num_tokens != u.shape[0]:
        raise ValueError(f"schedule was built for {schedule.num_tokens} tokens, but u has T = {u.shape[0]}")
    if table.device != u.device:
        raise ValueError(f"schedule is on {table.device}, but u is on {u.device}; they must be on one device")


def check_bounds(cu_seqlens: Tensor, num_tokens: int) -> None:
    """The values of cu_seqlens, on the CPU. Runs inside the operator, where values exist under torch.compile too."""
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0:
        raise ValueError(f"cu_seqlens must start at 0, got {first}")
    if last != num_tokens:
        raise ValueError(f"cu_seqlens must end at T = {num_tokens}, the tokens of u, got {last}")
    if bool((cu_seqlens.diff() <= 0).any()):
        i = int((cu_seqlens.diff() <= 0).int().argmax())
        raise ValueError(
            f"cu_seqlens must strictly increase (a document has at least one token), "
            f"but entry {i} is {int(cu_seqlens[i])} and entry {i + 1} is {int(cu_seqlens[i + 1])}"
        )
