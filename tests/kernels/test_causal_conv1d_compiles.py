"""The convolution's kernels compile for GPUs that are not here, without spills or traffic between lanes."""

from __future__ import annotations

import pytest
import torch
from packmamba_kernels.causal_conv1d import launch
from packmamba_kernels.causal_conv1d.kernel import causal_conv1d_bwd_kernel, causal_conv1d_fwd_kernel

from tests.kernels.compiled import ARCHITECTURES, compile_kernel

TABLES = dict.fromkeys(("cu_seqlens", "segment_start", "segment_length", "segment_seq"), "i32")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def compile_forward(architecture, dtype, width, states, **constants):
    activations = dict.fromkeys(("x", "initial_states", "out", "final_states"), dtype)
    return _compile(
        causal_conv1d_fwd_kernel, launch.FORWARD, activations, architecture, dtype, width, states,
        STORE_FINAL=states, **constants,
    )  # fmt: skip


def compile_backward(architecture, dtype, width, states, **constants):
    sums = {"partial": "fp64" if dtype == "fp64" else "fp32"}
    names = ("dout", "dfinal_states", "x", "initial_states", "dx", "dinitial_states")
    activations = dict.fromkeys(names, dtype) | sums
    return _compile(
        causal_conv1d_bwd_kernel, launch.BACKWARD, activations, architecture, dtype, width, states,
        HAS_DFINAL=states, **constants,
    )  # fmt: skip


def _compile(kernel, config, activations, architecture, dtype, width, states, **constants):
    parameter = "fp64" if dtype == "fp64" else "fp32"
    flags = {"W": width, "HAS_BIAS": True, "HAS_INITIAL": states, "SILU": True}
    options = launch.launch_options(config, DTYPES[dtype], **flags) | constants
    constants = {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
    pointers = activations | {"weight": parameter, "bias": parameter} | TABLES
    if not states:
        missing = [name for name in ("initial_states", "dfinal_states") if name in pointers]
        constants |= dict.fromkeys(missing)
        pointers = {name: value for name, value in pointers.items() if name not in missing}
    return compile_kernel(kernel, pointers, constants, architecture=architecture, aligned=("stride_x", "E"), **options)


@pytest.mark.parametrize("compile_one", [compile_forward, compile_backward])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "width", "states"),
    [("bf16", 4, False), ("bf16", 4, True), ("fp32", 8, True), ("fp64", 4, True)],
)
def test_compiles_without_spills(compile_one, architecture, dtype, width, states):
    compiled = compile_one(architecture, dtype, width, states)
    assert compiled.stack == 0
    assert compiled.registers < 255
    if not states:
        assert compiled.layout_conversions == 0
        assert compiled.shared == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_enough_warps_are_resident_to_hide_memory_latency(architecture):
    """64 Ki registers an SM, one warp of 32 threads a program: at least 16 programs in the usual case."""
    assert 65_536 // (32 * compile_forward(architecture, "bf16", 4, False).registers) >= 24
    assert 65_536 // (32 * compile_backward(architecture, "bf16", 4, False).registers) >= 16


def test_the_spill_check_sees_spills():
    assert compile_backward(90, "bf16", 8, False, ROWS=16).stack > 0


def test_each_input_is_loaded_once():
    """Global loads of the forward: W taps of each of a lane's 4 channels, the bias, W-1 rows of history, ROWS rows and
    5 scalars; nothing for each tap and row."""
    compiled = compile_forward(90, "bf16", 4, False)
    assert compiled.instructions["LDG"] <= 4 * 4 + 1 + 3 + launch.FORWARD["ROWS"] + 5
