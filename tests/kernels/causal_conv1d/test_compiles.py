"""The convolution's kernels compile for GPUs that are not here, without spills or traffic between lanes."""

from __future__ import annotations

import pytest
import triton
from packmamba_kernels.causal_conv1d import launch
from packmamba_kernels.causal_conv1d.kernels_backward import causal_conv1d_sum_kernel
from packmamba_kernels.runtime.triton_glue import LAUNCH_OPTIONS

from benchmarks.compiler.compiled import ARCHITECTURES, compile_kernel
from benchmarks.compiler.instructions import CONV_KERNELS, compile_conv

pytestmark = pytest.mark.slow

TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
MOST_REGISTERS = 254 if TRITON >= (3, 9) else 255
"""Registers of a thread, which can have 255. With triton 3.6 the backward takes them all on sm_90 for fp32 and W = 8,
and spills nothing."""


@pytest.mark.parametrize("name", CONV_KERNELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "width", "states"),
    [("bf16", 4, False), ("bf16", 4, True), ("fp32", 8, True), ("fp64", 4, True)],
)
def test_compiles_without_spills(name, architecture, dtype, width, states):
    compiled = compile_conv(name, architecture, dtype=dtype, width=width, states=states)
    assert compiled.stack == 0
    assert compiled.registers <= MOST_REGISTERS
    if not states:
        assert compiled.layout_conversions == 0
        assert compiled.shared == 0


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sum_of_the_filters_parts_compiles_without_spills(architecture, dtype):
    pointers = {"partial": dtype, "dweight": "bf16", "dbias": "bf16"}
    constants = {"W": 8, "HAS_BIAS": True} | launch.SUM
    options = {"num_warps": constants.pop("num_warps"), **LAUNCH_OPTIONS}
    assert (
        compile_kernel(causal_conv1d_sum_kernel, pointers, constants, architecture=architecture, **options).stack == 0
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_enough_warps_are_resident_to_hide_memory_latency(architecture):
    """In the usual case, without initial or final states. An SM of sm_86 takes 16 programs, of a warp each, at most."""
    assert compile_conv("forward", architecture).resident_warps() >= (12 if architecture == 86 else 24)
    assert compile_conv("backward", architecture).resident_warps() >= 16


def test_the_spill_check_sees_spills():
    assert compile_conv("backward", 90, width=8, ROWS=16).stack > 0


def test_each_input_is_loaded_once():
    """Global loads of the forward: W taps of each of a lane's 4 channels, the bias, W-1 rows of history, ROWS rows and
    5 scalars; nothing for each tap and row."""
    compiled = compile_conv("forward", 90)
    assert compiled.instructions["LDG"] <= 4 * 4 + 1 + 3 + launch.FORWARD["ROWS"] + 5
