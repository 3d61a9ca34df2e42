"""Grids and launch options of the Triton kernels. Imports triton, so it is imported where a kernel is needed."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from packmamba_kernels._triton import LAUNCH_OPTIONS, device_of
from packmamba_kernels.causal_conv1d.kernel import causal_conv1d_bwd_kernel, causal_conv1d_fwd_kernel

FORWARD = {"BE": 128, "ROWS": 8}
BACKWARD = {"BE": 128, "ROWS": 3}
"""Channels a program and tokens loaded at a time, the same for sm_80 to sm_120: 16-bit inputs take 8 bytes a lane and
row; without initial states 64 to 96 registers at W = 4, so that 20 to 32 warps are resident on an SM. Three rows, not
four, in the backward: at four the compiler keeps every row's address in vector registers (165)."""

FP64_BE = 32
"""Channels a program for fp64, where 128 would spill."""

MAX_PARTIALS = 1024
"""Programs along the segments in the backward, each with one row of partial sums: a bound on that scratch."""


def launch_options(config: dict[str, int], dtype: torch.dtype, **constants: int) -> dict[str, Any]:
    """Compile-time arguments, `constants` included, and launch options of a kernel whose input has this dtype."""
    fp64 = dtype == torch.float64
    return {
        **constants,
        "BE": FP64_BE if fp64 else config["BE"],
        "ROWS": config["ROWS"],
        "ACC": tl.float64 if fp64 else tl.float32,
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
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_shape = (cu_seqlens.shape[0] - 1, channels, width - 1) if return_final_states else (0,)
    final_states = x.new_empty(final_shape)
    options = launch_options(
        FORWARD,
        x.dtype,
        W=width,
        HAS_BIAS=bias is not None,
        HAS_INITIAL=initial_states is not None,
        STORE_FINAL=return_final_states,
        SILU=activation == "silu",
    )
    grid = (segments[0].shape[0] * triton.cdiv(channels, options["BE"]),)
    with device_of(x):
        causal_conv1d_fwd_kernel[grid](
            x,
            weight.contiguous(),
            bias if bias is None else bias.contiguous(),
            initial_states if initial_states is None else initial_states.contiguous(),
            out,
            final_states,
            cu_seqlens,
            *segments,
            x.stride(0),
            channels,
            **options,
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
    options = launch_options(
        BACKWARD,
        x.dtype,
        W=width,
        HAS_BIAS=bias is not None,
        HAS_INITIAL=initial_states is not None,
        HAS_DFINAL=dfinal_states is not None,
        SILU=activation == "silu",
    )
    num_segments = segments[0].shape[0]
    segments_per_program = triton.cdiv(num_segments, MAX_PARTIALS)
    num_programs = triton.cdiv(num_segments, segments_per_program)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dinitial_states = x.new_empty(0)
    if initial_states is not None:
        dinitial_states = torch.empty(initial_states.shape, dtype=initial_states.dtype, device=x.device)
    sum_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = torch.empty(num_programs, width + 1, channels, dtype=sum_dtype, device=x.device)
    with device_of(x):
        causal_conv1d_bwd_kernel[(num_programs * triton.cdiv(channels, options["BE"]),)](
            dout.contiguous(),
            dfinal_states if dfinal_states is None else dfinal_states.contiguous(),
            x,
            weight.contiguous(),
            bias if bias is None else bias.contiguous(),
            initial_states if initial_states is None else initial_states.contiguous(),
            dx,
            dinitial_states,
            partial,
            cu_seqlens,
            *segments,
            x.stride(0),
            channels,
            num_segments,
            segments_per_program,
            **options,
        )
    sums = partial.sum(0)  # (W+1, E)
    dweight = torch.empty(weight.shape, dtype=weight.dtype, device=x.device).copy_(sums[:width].T)
    dbias = x.new_empty(0)
    if bias is not None:
        dbias = torch.empty(bias.shape, dtype=bias.dtype, device=x.device).copy_(sums[width])
    return dx, dweight, dbias, dinitial_states
