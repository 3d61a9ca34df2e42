"""Grids and launch options of the Triton kernels. Imports triton, so it is imported where a kernel is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from packmamba_kernels.causal_conv1d.inputs import ConvGradients, ConvInputs, ConvOptions, ConvResults
from packmamba_kernels.causal_conv1d.kernels_backward import causal_conv1d_bwd_kernel, causal_conv1d_sum_kernel
from packmamba_kernels.causal_conv1d.kernels_forward import causal_conv1d_fwd_kernel
from packmamba_kernels.runtime.launching import compiled_for
from packmamba_kernels.runtime.triton_glue import LAUNCH_OPTIONS, cdiv, device_of, empty_like
from packmamba_kernels.schedule import Segments

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


def forward(inputs: ConvInputs, cu_seqlens: Tensor, segments: Segments, options: ConvOptions) -> ConvResults:
    """As `reference.forward`."""
    x, weight, bias, initial_states = _normalised(inputs)
    channels, width = weight.shape
    out = empty_like(x)
    final_shape = (segments.num_seqs, channels, width - 1) if options.return_final_states else (0,)
    final_states = x.new_empty(final_shape)
    kernels = compiled_for(
        (x, weight, bias, initial_states, cu_seqlens, segments.start),
        "conv", width, channels, options.activation, options.return_final_states,
    )  # fmt: skip
    with device_of(x):
        kernels.launch(
            "forward",
            causal_conv1d_fwd_kernel,
            segments.num_segments * cdiv(channels, _block(FORWARD, x.dtype)),
            (x, weight, bias, initial_states, out, final_states, *_tables(cu_seqlens, segments), x.stride(0), channels),
            lambda: launch_options(
                FORWARD,
                x.dtype,
                W=width,
                **_flags(inputs, options),
                STORE_FINAL=options.return_final_states,
            ),
        )
    return ConvResults(out, final_states)


def backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    inputs: ConvInputs,
    cu_seqlens: Tensor,
    segments: Segments,
    options: ConvOptions,
    into: Mapping[str, Tensor],
) -> ConvGradients:
    """As `reference.backward`. into: where to write dx, if not to memory of its own; its last stride is 1.

    Each program sums its tokens' part of the filters' gradient into its own row of a scratch, which is then added up in
    a fixed order.
    """
    x, weight, bias, initial_states = _normalised(inputs)
    dout, dfinal_states = dout.contiguous(), _contiguous(dfinal_states)
    channels, width = weight.shape
    num_segments = segments.num_segments
    segments_per_program = cdiv(num_segments, MAX_PARTIALS)
    num_programs = cdiv(num_segments, segments_per_program)
    dx, dweight = into["dx"] if "dx" in into else empty_like(x), empty_like(weight)
    dbias, dinitial_states = _gradient(bias), _gradient(initial_states)
    sum_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = torch.empty(num_programs, width + 1, channels, dtype=sum_dtype, device=x.device)
    kernels = compiled_for(
        (x, weight, bias, initial_states, dout, dfinal_states, dx, cu_seqlens, segments.start),
        "conv backward", width, channels, options.activation,
    )  # fmt: skip
    with device_of(x):
        kernels.launch(
            "backward",
            causal_conv1d_bwd_kernel,
            num_programs * cdiv(channels, _block(BACKWARD, x.dtype)),
            (
                dout, dfinal_states, x, weight, bias, initial_states, dx, dinitial_states, partial,
                *_tables(cu_seqlens, segments), x.stride(0), dx.stride(0), channels, num_segments, segments_per_program,
            ),
            lambda: launch_options(
                BACKWARD,
                x.dtype,
                W=width,
                **_flags(inputs, options),
                HAS_DFINAL=dfinal_states is not None,
            ),
        )  # fmt: skip
        kernels.launch(
            "sum",
            causal_conv1d_sum_kernel,
            (width + 1) * cdiv(channels, SUM["BE"]),
            (partial, dweight, dbias, num_programs, channels),
            lambda: {"W": width, "HAS_BIAS": bias is not None, **SUM},
        )
    return ConvGradients(dx, dweight, dbias, dinitial_states)


def _normalised(inputs: ConvInputs) -> ConvInputs:
    """The inputs as kernels take them: all but x contiguous."""
    x, weight, bias, initial_states = inputs
    return ConvInputs(x, weight.contiguous(), _contiguous(bias), _contiguous(initial_states))


def _tables(cu_seqlens: Tensor, segments: Segments) -> tuple[Tensor, ...]:
    return cu_seqlens, segments.start, segments.length, segments.seq


def _flags(inputs: ConvInputs, options: ConvOptions) -> dict[str, bool]:
    """Compile-time arguments of either direction."""
    return {
        "HAS_BIAS": inputs.bias is not None,
        "HAS_INITIAL": inputs.initial_states is not None,
        "SILU": options.activation == "silu",
    }


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _gradient(x: Tensor | None) -> Tensor | None:
    return None if x is None else empty_like(x)
