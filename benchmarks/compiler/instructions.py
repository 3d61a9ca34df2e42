"""What the Triton compiler makes of the kernels for GPUs that need not be here: instructions, registers, spills.

    python -m benchmarks instructions --output benchmarks/results/instructions.json

Instructions are those of the inner loop, for one token and 32 channels, which is what a warp executes for a lane's
worth of work. Needs triton (whose wheel brings the assembler), not a GPU. Cycles, for sm_80 and sm_90, are those in
which a sub-partition full of warps issues them, by the model of `benchmarks.compiler.issue_model`: not measured.

    python -m benchmarks instructions --architectures 90 --profile selective_scan.forward

shows which instructions of an inner loop the model has waiting.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from packmamba_kernels.causal_conv1d import kernels_backward as conv_backward
from packmamba_kernels.causal_conv1d import kernels_forward as conv_forward
from packmamba_kernels.causal_conv1d import launch as conv_launch
from packmamba_kernels.gated_rms_norm import kernels_rows as norm_kernels
from packmamba_kernels.gated_rms_norm import launch as norm_launch
from packmamba_kernels.gated_rms_norm.inputs import NormOptions
from packmamba_kernels.runtime.triton_glue import LAUNCH_OPTIONS
from packmamba_kernels.selective_scan import kernels_backward as scan_backward
from packmamba_kernels.selective_scan import kernels_forward as scan_forward
from packmamba_kernels.selective_scan import launch as scan_launch

from benchmarks.compiler.compiled import ARCHITECTURES, CompiledKernel, compile_kernel
from benchmarks.compiler.issue_model import MODELLED, model, profile
from packmamba.compare.report import write_report
from packmamba.environment import describe_environment

SCAN_KERNELS = {
    "forward": (scan_forward.selective_scan_fwd_kernel, scan_launch.FORWARD),
    "forward_sweep": (scan_backward.forward_sweep_kernel, scan_launch.BACKWARD),
    "reverse_sweep": (scan_backward.reverse_sweep_kernel, scan_launch.BACKWARD),
    "segment_states": (scan_forward.segment_states_kernel, scan_launch.FORWARD),
    "segment_grads": (scan_backward.segment_grads_kernel, scan_launch.BACKWARD),
    "fold_states": (scan_forward.fold_states_kernel, scan_launch.FORWARD),
}
"""By name: the kernel and its tiles. The first runs in the forward, the next two in the backward, the others only for
documents longer than a segment."""

CONV_KERNELS = {
    "forward": (conv_forward.causal_conv1d_fwd_kernel, conv_launch.FORWARD),
    "backward": (conv_backward.causal_conv1d_bwd_kernel, conv_launch.BACKWARD),
}

NORM_KERNELS = {
    "forward": norm_kernels.gated_rms_norm_fwd_kernel,
    "backward": norm_kernels.gated_rms_norm_bwd_kernel,
}

COUNTED = (
    *(("causal_conv1d", name) for name in CONV_KERNELS),
    *(("selective_scan", name) for name in SCAN_KERNELS if name != "fold_states"),
)
"""Operator and kernel, of those whose inner loop walks over tokens; that of `fold_states` walks over segments."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}

_SCAN_TABLES = ("p_start", "p_length", "p_seq", "p_cu_segments", "p_order", "p_walks", "p_walk_order")
_SCAN_ACTIVATIONS = ("p_u", "p_delta", "p_z", "p_out", "p_dout", "p_du", "p_ddelta", "p_dz")
_SCAN_ALIGNED = ("stride_u", "stride_delta", "stride_z", "stride_dz", "E", "width")
_CONV_ACTIVATIONS = (
    "x",
    "initial_states",
    "out",
    "final_states",
    "dout",
    "dfinal_states",
    "dx",
    "dinitial_states",
)
_CONV_SUMS = ("weight", "bias", "partial")
_CONV_TABLES = ("cu_seqlens", "segment_start", "segment_length", "segment_seq")
_SCAN_OPTIONAL = {
    "HAS_D": ("p_D", "p_dD"),
    "HAS_Z": ("p_z", "p_dz"),
    "HAS_BIAS": ("p_bias", "p_dbias"),
    "HAS_INITIAL": ("p_initial", "p_dinitial"),
    "HAS_DFINAL": ("p_dfinal",),
    "HAS_ENDS": ("p_ends",),
}


def compile_scan(
    name: str,
    architecture: int,
    *,
    states: int = 16,
    dtype: str = "bf16",
    even: bool = True,
    flags: bool | dict[str, bool] = True,
    known: dict[str, int] | None = None,
    **options: int,
) -> CompiledKernel:
    """A kernel of the scan as a launch compiles it, with one group and rows of 16-byte multiples.

    states: N. even: whether blocks of channels divide E. flags: whether every optional input and output is there, or
    some by the name of their constant. known: integers that are constants, as Triton makes those that are 1. options:
    other launch options than the operator's.
    """
    kernel, tiles = SCAN_KERNELS[name]
    tile = tiles[states]
    by_name = {} if isinstance(flags, bool) else flags
    default = flags if isinstance(flags, bool) else True
    constants: dict[str, Any] = {
        argument: by_name.get(argument, default)
        for argument in (*kernel.arg_names, "SOFTPLUS", "REVERSE")
        if argument.startswith(("HAS_", "STORE_", "SOFTPLUS", "REVERSE"))
    }
    missing = [pointer for flag, pointers in _SCAN_OPTIONAL.items() if not constants.get(flag) for pointer in pointers]
    constants |= {"N": states, "BE": tile.BE, "RUN": tile.RUN, "EVEN": even, "G": 1}
    constants["WORDS"] = scan_launch.loads_words(states, even)
    constants["LEAN"] = scan_launch.is_lean(architecture, states)
    constants |= dict.fromkeys(missing) | (known or {})
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    pointers = {
        argument: "i32" if argument in _SCAN_TABLES else dtype if argument in _SCAN_ACTIVATIONS else "fp32"
        for argument in kernel.arg_names
        if argument.startswith("p_") and argument not in constants
    }
    cap = scan_launch.register_cap(architecture, states, name)
    options = LAUNCH_OPTIONS | cap | {"num_warps": tile.num_warps} | options
    aligned = [argument for argument in _SCAN_ALIGNED if argument not in constants]
    return compile_kernel(kernel, pointers, constants, architecture=architecture, aligned=aligned, **options)


def compile_conv(
    name: str, architecture: int, *, width: int = 4, dtype: str = "bf16", states: bool = False, **options: int
) -> CompiledKernel:
    """A kernel of the convolution as a launch compiles it, with bias and SiLU. width: W. states: whether initial and
    final states are there."""
    kernel, config = CONV_KERNELS[name]
    flags = {"W": width, "HAS_BIAS": True, "SILU": True}
    flags |= dict.fromkeys(("HAS_INITIAL", "STORE_FINAL", "HAS_DFINAL"), states)
    launch = conv_launch.launch_options(config, DTYPES[dtype], **flags) | options
    constants = {argument: launch.pop(argument) for argument in list(launch) if argument in kernel.arg_names}
    launch = {option: value for option, value in launch.items() if not option.isupper()}
    if not states:
        constants |= {name: None for name in ("initial_states", "dfinal_states") if name in kernel.arg_names}
    accumulated = "fp64" if dtype == "fp64" else "fp32"
    kinds = dict.fromkeys(_CONV_ACTIVATIONS, dtype) | dict.fromkeys(_CONV_SUMS, accumulated)
    kinds |= dict.fromkeys(_CONV_TABLES, "i32")
    pointers = {name: kinds[name] for name in kernel.arg_names if name in kinds and name not in constants}
    return compile_kernel(
        kernel, pointers, constants, architecture=architecture, aligned=("stride_x", "stride_dx", "E"), **launch
    )


def compile_norm(
    name: str, architecture: int, *, dtype: str = "bf16", group_size: int = 4096, gate: bool = True,
    gate_last: bool = False, **options: int,
) -> tuple[CompiledKernel, int]:  # fmt: skip
    """A kernel of the gated normalisation as a launch compiles it, and the warps of its program. gate: whether there is
    a z."""
    kernel = NORM_KERNELS[name]
    launch = norm_launch.launch_options(name, DTYPES[dtype], NormOptions(1e-5, group_size, gate_last), has_z=gate)
    launch |= options
    constants = {argument: launch.pop(argument) for argument in list(launch) if argument in kernel.arg_names}
    kinds = dict.fromkeys(("y", "z", "out", "dout", "dy", "dz"), dtype) | dict.fromkeys(("weight", "partial"), "fp32")
    if not gate:
        constants |= {name: None for name in ("z", "dz") if name in kernel.arg_names}
    pointers = {name: kinds[name] for name in kernel.arg_names if name in kinds and name not in constants}
    compiled = compile_kernel(
        kernel, pointers, constants, architecture=architecture, aligned=("stride_y", "stride_z", "E"), **launch
    )
    return compiled, launch["num_warps"]


def describe(architectures: Sequence[int] = ARCHITECTURES, states: int = 16, width: int = 4) -> list[dict[str, Any]]:
    """One row for each kernel and architecture: bf16, every optional input but initial and final states."""
    rows = []
    for architecture in architectures:
        for op, name in COUNTED:
            compiled, num_warps = _compile(op, name, architecture, states, width)
            if op == "causal_conv1d":
                launch = CONV_KERNELS[name][1]
                elements = launch["BE"] * launch["ROWS"]
            else:
                elements = SCAN_KERNELS[name][1][states].BE
            rows.append(_row(op, name, architecture, compiled, elements, num_warps))
    return rows


def describe_waits(kernel: str, architecture: int, states: int = 16, width: int = 4) -> list[str]:
    """Lines on the instructions that the model has waiting longest in the inner loop of `kernel`, OPERATOR.KERNEL.

    Raises ValueError for an architecture that is not modelled.
    """
    op, name = kernel.split(".")
    compiled, num_warps = _compile(op, name, architecture, states, width)
    modelled = model(compiled, num_warps)
    warps = compiled.resident_warps(num_warps)
    return [
        f"{kernel}, sm_{architecture}, modelled, not measured: {modelled.cycles:.0f} cycles of a sub-partition for a "
        f"warp's pass of {len(compiled.loop)} instructions, {warps} warps/SM; mean cycles that a warp waits:",
        *profile(compiled.loop, modelled),
    ]


def _compile(op: str, name: str, architecture: int, states: int, width: int) -> tuple[CompiledKernel, int]:
    """A kernel as it is counted, and the warps of its program."""
    if op == "causal_conv1d":
        return compile_conv(name, architecture, width=width), 1
    plain: dict[str, bool] = dict.fromkeys(("HAS_INITIAL", "STORE_FINAL", "HAS_DFINAL", "STORE_OUT"), False)
    return compile_scan(name, architecture, states=states, flags=plain), SCAN_KERNELS[name][1][states].num_warps


def _row(
    op: str, kernel: str, architecture: int, compiled: CompiledKernel, elements: int, num_warps: int
) -> dict[str, Any]:
    """elements: tokens times channels of one pass through the inner loop of a program."""
    per_step = 32 * num_warps / elements
    return {
        "op": op,
        "kernel": kernel,
        "architecture": architecture,
        "registers": compiled.registers,
        "resident_warps": compiled.resident_warps(num_warps),
        "spilled_bytes": compiled.stack,
        "instructions": compiled.hot_loop.total() * per_step,
        "special_functions": compiled.hot_loop["MUFU"] * per_step,
        "shuffles": compiled.hot_loop["SHFL"] * per_step,
        "shared_memory": (compiled.hot_loop["LDS"] + compiled.hot_loop["STS"]) * per_step,
        "issue_cycles": model(compiled, num_warps).cycles * per_step if architecture in MODELLED else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks instructions",
        description="Compiles the kernels for GPUs that need not be here; counts instructions, registers and spills.",
    )
    parser.add_argument(
        "--architectures", nargs="+", type=int, choices=ARCHITECTURES,
        help="compute capabilities times ten (default: all that are supported, or modelled)",
    )  # fmt: skip
    parser.add_argument("--states", type=int, choices=list(scan_launch.FORWARD), default=16, help="N (default: 16)")
    parser.add_argument("--width", type=int, choices=range(2, 9), default=4, help="W (default: 4)")
    parser.add_argument(
        "--profile", metavar="KERNEL", choices=[".".join(kernel) for kernel in COUNTED],
        help="instead, show which instructions wait longest by the model (not measured; sm_80 and sm_90 only): "
             "OPERATOR.KERNEL, e.g. selective_scan.forward",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    if options.profile:
        architectures = options.architectures or MODELLED
        if unknown := [architecture for architecture in architectures if architecture not in MODELLED]:
            parser.error(f"--profile: sm_{unknown[0]} is not modelled; available: {', '.join(map(str, MODELLED))}")
        if options.output:
            parser.error("--profile prints; --output is for the counts")
        for architecture in architectures:
            print("\n".join(describe_waits(options.profile, architecture, options.states, options.width)))
        return 0
    rows = describe(options.architectures or ARCHITECTURES, options.states, options.width)
    print("of the inner loop, for one token and 32 channels (cycles: of a sub-partition, modelled, not measured):")
    print(
        f"{'operator':<15} {'kernel':<15} {'sm':>4} {'instr.':>7} {'special':>8} {'shuffles':>9} {'shared':>7} "
        f"{'registers':>10} {'warps/SM':>9} {'spilled':>8} {'cycles':>7}"
    )
    for row in rows:
        cycles = "" if row["issue_cycles"] is None else f"{row['issue_cycles']:.0f}"
        print(
            f"{row['op']:<15} {row['kernel']:<15} {row['architecture']:>4} {row['instructions']:>7.0f} "
            f"{row['special_functions']:>8.1f} {row['shuffles']:>9.1f} {row['shared_memory']:>7.1f} "
            f"{row['registers']:>10} {row['resident_warps']:>9} {row['spilled_bytes']:>6} B {cycles:>7}"
        )
    if options.output:
        report = {
            "benchmark": "instructions",
            "states": options.states,
            "width": options.width,
            "results": rows,
            "environment": describe_environment("cpu"),
        }
        write_report(options.output, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
