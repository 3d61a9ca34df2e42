"""The scan's kernels compile for GPUs that are not here, without spills and with short inner loops."""

from __future__ import annotations

import pytest
from packmamba_kernels._triton import LAUNCH_OPTIONS
from packmamba_kernels.selective_scan import launch
from packmamba_kernels.selective_scan.kernel import (
    fold_states_kernel,
    segment_states_kernel,
    selective_scan_fwd_kernel,
)
from packmamba_kernels.selective_scan.kernel_backward import (
    forward_sweep_kernel,
    reverse_sweep_kernel,
    segment_grads_kernel,
    sum_blocks_kernel,
)

from tests.kernels.compiled import ARCHITECTURES, compile_kernel

MAIN = {
    "forward": (selective_scan_fwd_kernel, launch.FORWARD),
    "forward_sweep": (forward_sweep_kernel, launch.BACKWARD),
    "reverse_sweep": (reverse_sweep_kernel, launch.BACKWARD),
}
HELPERS = {
    "segment_states": (segment_states_kernel, launch.FORWARD),
    "segment_grads": (segment_grads_kernel, launch.BACKWARD),
    "fold_states": (fold_states_kernel, launch.FORWARD),
}
ALIGNED = ("stride_u", "stride_delta", "stride_z", "E", "width")
TABLES = ("p_start", "p_length", "p_seq", "p_cu_segments", "p_order")
ACTIVATIONS = ("p_u", "p_delta", "p_z", "p_out", "p_dout", "p_du", "p_ddelta", "p_dz")


OPTIONAL = {
    "HAS_D": ("p_D", "p_dD"), "HAS_Z": ("p_z", "p_dz"), "HAS_BIAS": ("p_bias", "p_dbias"),
    "HAS_INITIAL": ("p_initial", "p_dinitial"), "HAS_DFINAL": ("p_dfinal",), "HAS_ENDS": ("p_ends",),
}  # fmt: skip


def compile_scan(name, architecture, states=16, dtype="bf16", even=True, full=True, known=None, **options):
    """As a launch compiles with every optional input, or none: one group, rows of 16-byte multiples. known: integers
    that are constants, as Triton makes those that are 1."""
    kernel, tiles = (MAIN | HELPERS)[name]
    tile = tiles[states]
    constants = {argument: full for argument in kernel.arg_names if argument.startswith(("HAS_", "STORE_"))}
    constants |= {"N": states, "BE": tile.BE, "RUN": tile.RUN, "EVEN": even, "SOFTPLUS": full, "REVERSE": full, "G": 1}
    if not full:
        constants |= {pointer: None for pointers in OPTIONAL.values() for pointer in pointers}
    constants = {k: v for k, v in (constants | (known or {})).items() if k in kernel.arg_names}
    pointers = {
        argument: "i32" if argument in TABLES else dtype if argument in ACTIVATIONS else "fp32"
        for argument in kernel.arg_names
        if argument.startswith("p_") and argument not in constants
    }
    options = LAUNCH_OPTIONS | launch.register_cap(architecture, states, name) | {"num_warps": tile.num_warps} | options
    aligned = [argument for argument in ALIGNED if argument not in constants]
    return compile_kernel(kernel, pointers, constants, architecture=architecture, aligned=aligned, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize(("dtype", "even"), [("bf16", True), ("bf16", False), ("fp32", True)])
def test_sixteen_states_compile_without_spills(name, architecture, dtype, even):
    compiled = compile_scan(name, architecture, dtype=dtype, even=even)
    assert compiled.stack == 0
    # The state tile stays where it is: only rows of inputs and outputs, which are a value or two a lane, change layout.
    tile = launch.BACKWARD[16].BE
    assert set(compiled.hot_conversions) <= {f"{tile}xf32", f"{tile}xbf16", "16xf32"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("states", [32, 64, 128])
def test_many_states_compile_without_spills(name, architecture, states):
    assert compile_scan(name, architecture, states, even=False).stack == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", HELPERS)
def test_the_passing_of_states_compiles_without_spills(name, architecture):
    assert compile_scan(name, architecture).stack == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sum_over_channel_blocks_compiles_without_spills(architecture):
    pointers = {"p_parts": "fp32", "p_out": "bf16"}
    constants = {"N": 16, "ROWS": 64}
    options = {"num_warps": 4, **LAUNCH_OPTIONS}
    assert compile_kernel(sum_blocks_kernel, pointers, constants, architecture=architecture, **options).stack == 0


def test_inner_loops_are_as_short_as_they_were():
    """Instructions of one token and 64 channels for sm_90, with a tenth to spare for other compilers: 285, 622, 614."""
    bounds = {"forward": 315, "forward_sweep": 685, "reverse_sweep": 675}
    for name, bound in bounds.items():
        loop = compile_scan(name, 90).hot_loop
        assert 200 < loop.total() < bound, name
        # An exponential for each of a lane's states, of which a warp has 16 · 64, and a few for each channel.
        assert 32 < loop["MUFU"] <= 40, name


def test_enough_warps_are_resident_to_keep_the_exponentials_busy():
    """64 Ki registers an SM, one warp of 32 threads a program, 4 schedulers."""
    least = {"forward": 8, "forward_sweep": 8, "reverse_sweep": 8}
    for name, programs in least.items():
        assert 65_536 // (32 * compile_scan(name, 90).registers) >= programs, name


def test_the_spill_check_sees_spills():
    assert compile_scan("reverse_sweep", 90, maxnreg=128).stack > 0


@pytest.mark.parametrize("name", MAIN | HELPERS)
def test_compiles_without_optional_inputs_and_with_one_channel(name):
    one = dict.fromkeys(("E", "width", "stride_u", "stride_delta", "stride_z"), 1)
    for compiled in (compile_scan(name, 90, full=False), compile_scan(name, 90, even=False, known=one)):
        assert compiled.hot_loop.total() > 0
        assert compiled.hot_loop["LDL"] + compiled.hot_loop["STL"] == 0  # a scalar outside the loop may be spilled


def test_the_loop_counts_see_what_the_compiler_adds():
    """With states over several warps Σ_n goes through shared memory, behind barriers."""
    compiled = compile_scan("reverse_sweep", 90, num_warps=4)
    assert compiled.hot_loop["BAR"] > compile_scan("reverse_sweep", 90).hot_loop["BAR"]
