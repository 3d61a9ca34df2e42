"""Which implementation each operator uses on a device, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from packmamba_kernels.runtime.triton_glue import INTERPRET

OPERATORS = ("causal_conv1d", "gated_rms_norm", "selective_scan")


@dataclass(frozen=True)
class Choice:
    """What an operator called on a device's tensors runs."""

    implementation: str
    """`triton`, `triton interpreter` or `reference`; `none` where the call would fail."""
    why: str


def explain(device: torch.device | str) -> dict[str, Choice]:
    """The choice of each operator, by name.

    One rule for all (`runs_kernel`): CUDA tensors go through the Triton kernels, others through the reference,
    and nothing falls back from one to the other.
    """
    return dict.fromkeys(OPERATORS, _choose(torch.device(device).type))


def _choose(device_type: str) -> Choice:
    if INTERPRET:
        return Choice("triton interpreter", "TRITON_INTERPRET=1 is set: kernels run on the CPU, slowly, for testing")
    if device_type != "cuda":
        return Choice("reference", f"{device_type} tensors take the vectorised torch implementation")
    if importlib.util.find_spec("triton") is None:
        return Choice("none", "CUDA tensors need triton, which is not installed")
    return Choice("triton", "CUDA tensors take the Triton kernels")
