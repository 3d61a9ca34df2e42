"""Grids and launch options of the Triton kernels. Imports triton, so it is imported where a kernel is needed."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from packmamba_kernels.gated_rms_norm.inputs import NormGradients, NormInputs, NormOptions
from packmamba_kernels.gated_rms_norm.kernels_rows import gated_rms_norm_bwd_kernel, gated_rms_norm_fwd_kernel
from packmamba_kernels.runtime.launching import compiled_for
from packmamba_kernels.runtime.triton_glue import LAUNCH_OPTIONS, cdiv, device_of, empty_like

TILE = 2048
"""Numbers of a tensor that a program holds: tokens of a group, one at least."""

NUMBERS_OF_A_WARP = {"forward": 512, "backward": 256}
"""Of a tile, by kernel: 16 or 8 numbers of each tensor a lane."""

MAX_WARPS = 16
WARPS_OF_THE_LARGEST = {"forward": 16, "backward": 8}
"""Of a program that holds more than 4,096 numbers: with sixteen a thread has 128 registers, and the backward spills."""

MAX_PARTIALS = 1024
"""Programs along the tokens in the backward, each with a row of partial sums: a bound on that scratch."""


def launch_options(name: str, dtype: torch.dtype, options: NormOptions, *, has_z: bool) -> dict[str, Any]:
    """Compile-time arguments and launch options of the kernel `name` for a y of this dtype."""
    block = triton.next_power_of_2(options.group_size)
    rows = rows_of(options)
    return {
        "SIZE": options.group_size,
        "EPS": options.eps,
        "BE": block,
        "ROWS": rows,
        "HAS_Z": has_z,
        "GATE_LAST": options.norm_before_gate,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_warps": _num_warps(name, rows * block),
        **LAUNCH_OPTIONS,
    }


def _num_warps(name: str, numbers: int) -> int:
    most = MAX_WARPS if numbers <= 4096 else WARPS_OF_THE_LARGEST[name]
    return min(most, max(1, numbers // NUMBERS_OF_A_WARP[name]))


def rows_of(options: NormOptions) -> int:
    """Tokens that a program holds at a time."""
    return max(1, TILE // triton.next_power_of_2(options.group_size))


def forward(inputs: NormInputs, options: NormOptions) -> Tensor:
    """As `reference.forward`."""
    y, z, weight = inputs
    weight = weight.contiguous()
    num_tokens, channels = y.shape
    out = empty_like(y)
    kernels = compiled_for((y, z, weight), "gated norm", channels, *options)
    with device_of(y):
        kernels.launch(
            "forward",
            gated_rms_norm_fwd_kernel,
            cdiv(num_tokens, rows_of(options)) * (channels // options.group_size),
            (y, z, weight, out, y.stride(0), 0 if z is None else z.stride(0), channels, num_tokens),
            lambda: launch_options("forward", y.dtype, options, has_z=z is not None),
        )
    return out


def backward(dout: Tensor, inputs: NormInputs, options: NormOptions) -> NormGradients:
    """As `reference.backward`. Each program sums its tokens' part of the weight's gradient into its own row of a
    scratch, which is then added up in a fixed order."""
    y, z, weight = inputs
    weight, dout = weight.contiguous(), dout.contiguous()
    num_tokens, channels = y.shape
    tiles = cdiv(num_tokens, rows_of(options))
    tiles_per_program = cdiv(tiles, MAX_PARTIALS)
    num_programs = cdiv(tiles, tiles_per_program)
    dy, dz = empty_like(y), None if z is None else empty_like(z)
    sum_dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
    partial = torch.empty(num_programs, channels, dtype=sum_dtype, device=y.device)
    kernels = compiled_for((y, z, weight, dout), "gated norm backward", channels, *options)
    with device_of(y):
        kernels.launch(
            "backward",
            gated_rms_norm_bwd_kernel,
            num_programs * (channels // options.group_size),
            (
                dout, y, z, weight, dy, dz, partial,
                y.stride(0), 0 if z is None else z.stride(0), channels, num_tokens, tiles_per_program,
            ),
            lambda: launch_options("backward", y.dtype, options, has_z=z is not None),
        )  # fmt: skip
    return NormGradients(dy, dz, partial.sum(0).to(weight.dtype))
