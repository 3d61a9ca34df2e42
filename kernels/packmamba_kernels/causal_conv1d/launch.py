"""Grids and launch options of the Triton kernels. Imports triton, so it is imported where a kernel is needed."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from packmamba_kernels.causal_conv1d.kernels_backward import causal_conv1d_bwd_kernel, causal_conv1d_sum_kernel
from packmamba_kernels.causal_conv1d.kernels_forward import causal_conv1d_fwd_kernel
from packmamba_kernels.runtime.launching import launches
from packmamba_kernels.runtime.triton_glue import LAUNCH_OPTIONS, cdiv, device_of, empty_like

FORWARD = {"BE": 128, "ROWS": 8, "FP64_BE": 32, "FP64_ROWS": 8}
BACKWARD = {"BE": 128, "ROWS": 3, "FP64_BE": 32, "FP64_ROWS": 2}
"""Channels of a program and tokens loaded at a time, the same for sm_80 to sm_120: 16-bit inputs take 8 bytes of a lane
and row; without initial states 64 to 96 registers at W = 4, so that 20 to 32 warps are resident on an SM. Three rows,
not four, in the backward: at four the compiler keeps every row's address in vector registers (165). In fp64 128
channels would spill, and so would three rows of the backward under triton 3.6."""

SUM = {"BE": 64, "ROWS": 32, "num_warps": 4}
"""Channels a program, and rows of partial sums that it loads at a time."""

MAX_PARTIALS = 1024
"""Programs along the segments in the backward, each with one row of partial sums: a bound on that scratch."""


def _block(config: dict[str, int], dtype: torch.dtype) -> int:
    """Channels of a program."""
    return config["FP64_BE" if dtype == torch.float64 else "BE"]


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def launch_options(config: dict[str, int], dtype: torch.dtype, **constants: int) -> dict[str, Any]:
    """Compile-time arguments, `constants` included, and launch options of a kernel whose input has this dtype."""
    return {
        **constants,
        "BE": _block(config, dtype),
        "ROWS": config["FP64_ROWS" if dtype == torch.float64 else "ROWS"],
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_warps": 1,
        **LAUNCH_OPTIONS,
    }


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    cu_seqlens: Tensor,
    segments: tuple[Tensor, Tensor, Tensor],
    activation: str | None,
    return_final_states: bool,
) -> tuple[Tensor, Tensor]:
    """As `reference.forward`. segments: start, length and document of each, int32 (I,)."""
    channels, width = weight.shape
    weight, bias, initial_states = weight.contiguous(), _contiguous(bias), _contiguous(initial_states)
    out = empty_like(x)
    final_shape = (cu_seqlens.shape[0] - 1, channels, width - 1) if return_final_states else (0,)
    final_states = x.new_empty(final_shape)
    tables = (cu_seqlens, *segments)
    launch = launches(
        (x, weight, bias, initial_states), tables, "conv", width, channels, activation, return_final_states
    )
    with device_of(x):
        launch(
            "forward",
            causal_conv1d_fwd_kernel,
            segments[0].shape[0] * cdiv(channels, _block(FORWARD, x.dtype)),
            (x, weight, bias, initial_states, out, final_states, *tables, x.stride(0), channels),
            lambda: launch_options(
                FORWARD,
                x.dtype,
                W=width,
                HAS_BIAS=bias is not None,
                HAS_INITIAL=initial_states is not None,
                STORE_FINAL=return_final_states,
                SILU=activation == "silu",
            ),
        )
    return out, final_states


def backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    cu_seqlens: Tensor,
    segments: tuple[Tensor, Tensor, Tensor],
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.backward`. Each program sums its tokens' part of the filters' gradient into its own row of a
    scratch, which is then added up in a fixed order."""
    channels, width = weight.shape
    num_segments = segments[0].shape[0]
    segments_per_program = cdiv(num_segments, MAX_PARTIALS)
    num_programs = cdiv(num_segments, segments_per_program)
    rows, bias_row, initial = weight.contiguous(), _contiguous(bias), _contiguous(initial_states)
    dx = empty_like(x)
    dinitial_states = x.new_empty(0)
    if initial_states is not None:
        dinitial_states = empty_like(initial_states)
    dweight, dbias = empty_like(weight), x.new_empty(0) if bias is None else empty_like(bias)
    sum_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = torch.empty(num_programs, width + 1, channels, dtype=sum_dtype, device=x.device)
    given, tables = (x, weight, bias, initial_states, dout, dfinal_states), (cu_seqlens, *segments)
    launch = launches(given, tables, "conv backward", width, channels, activation)
    dout, dfinal_states = dout.contiguous(), _contiguous(dfinal_states)
    with device_of(x):
        launch(
            "backward",
            causal_conv1d_bwd_kernel,
            num_programs * cdiv(channels, _block(BACKWARD, x.dtype)),
            (
                dout, dfinal_states, x, rows, bias_row, initial, dx, dinitial_states, partial, *tables,
                x.stride(0), channels, num_segments, segments_per_program,
            ),
            lambda: launch_options(
                BACKWARD,
                x.dtype,
                W=width,
                HAS_BIAS=bias is not None,
                HAS_INITIAL=initial is not None,
                HAS_DFINAL=dfinal_states is not None,
                SILU=activation == "silu",
            ),
        )  # fmt: skip
        launch(
            "sum",
            causal_conv1d_sum_kernel,
            (width + 1) * cdiv(channels, SUM["BE"]),
            (partial, dweight, dbias, num_programs, channels),
            lambda: {"W": width, "HAS_BIAS": bias is not None, **SUM},
        )
    return dx, dweight, dbias, dinitial_states
