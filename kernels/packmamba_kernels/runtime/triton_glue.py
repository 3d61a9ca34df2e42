"""What every Triton launch shares. Imports no triton, so that the CPU path runs without it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether kernels run in Triton's interpreter, on CPU tensors: how they are tested without a GPU."""

LAUNCH_OPTIONS = {"enable_fp_fusion": True}
"""Multiply-adds are fused, whatever the Triton version's default."""


def runs_kernel(x: Tensor) -> bool:
    """Whether an operator called on x launches its Triton kernel; else it runs its reference."""
    return x.is_cuda or INTERPRET


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's takes 2 µs outside of a kernel."""
    return -(-a // b)


def empty_like(x: Tensor) -> Tensor:
    """Contiguous memory of x's shape and dtype, in half the time of `torch.empty`."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_NOTHING = nullcontext()


def device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device: makes x's the current one."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(x.device)
