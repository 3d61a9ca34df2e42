"""The scan's kernels compile for GPUs that are not here, without spills and with short inner loops."""

from __future__ import annotations

import pytest
from packmamba_kernels.selective_scan import launch

from benchmarks.compiler.compiled import ARCHITECTURES
from benchmarks.compiler.instructions import SCAN_KERNELS, compile_scan

pytestmark = pytest.mark.slow

MAIN = ("forward", "forward_sweep", "reverse_sweep")
IN_A_MIXER = dict.fromkeys(("HAS_INITIAL", "STORE_FINAL", "HAS_DFINAL"), False)
"""Everything else is there: the output is computed again, for it is not kept."""
HELPERS = ("segment_states", "segment_grads", "fold_states")
WALKS = tuple(name for name in SCAN_KERNELS if name != "fold_states")
"""Those with a loop over tokens."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize(
    ("dtype", "even", "flags"),
    [("bf16", True, True), ("bf16", True, IN_A_MIXER), ("bf16", False, True), ("fp32", True, True)],
    ids=["bf16", "bf16-mixer", "bf16-uneven", "fp32"],
)
def test_sixteen_states_compile_without_spills(name, architecture, dtype, even, flags):
    compiled = compile_scan(name, architecture, dtype=dtype, even=even, flags=flags)
    assert_no_spills(compiled)
    # The state tile stays where it is: only rows of inputs and outputs, which are a value or two a lane, change layout,
    # and pairs of channels' parts of dB or dC, once.
    tile = launch.BACKWARD[16].BE
    allowed = {f"{tile}xf32", f"{tile}xbf16", "16xf32", f"16x{tile // 4}x2xf32"}
    assert set(compiled.hot_conversions) <= allowed
    assert compiled.hot_conversions.count(f"16x{tile // 4}x2xf32") == (name != "forward")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("states", [32, 64, 128])
@pytest.mark.parametrize("even", [True, False])
def test_many_states_compile_without_spills_in_the_loop(name, architecture, states, even):
    outside = 80 if architecture == 80 else 16
    assert_no_spills(compile_scan(name, architecture, states=states, even=even), outside)


def assert_no_spills(compiled, outside=0):
    """None in the loop over tokens. outside: bytes that may be spilled where they are fetched again once a chunk."""
    assert compiled.stack <= outside
    assert compiled.hot_loop["LDL"] + compiled.hot_loop["STL"] == 0


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("states", [4, 8, 16, 32, 64, 128])
def test_rows_of_inputs_reach_the_loop_by_asynchronous_copies(name, states):
    """A copy for each row at least, B and C together: three in `segment_states`, six in the reverse sweep."""
    loop = compile_scan(name, 90, states=states).hot_loop
    rows = {"forward": 4, "forward_sweep": 5, "reverse_sweep": 6, "segment_states": 3, "segment_grads": 4}
    assert loop["LDGSTS"] >= rows[name]
    if states <= 32 or name != "segment_states":
        assert loop["LDG"] == 0


def test_rows_too_narrow_for_asynchronous_copies_are_loaded_as_words():
    """Where blocks of channels do not divide E, 16-bit rows of 32 channels are still loaded where they are used."""
    assert compile_scan("reverse_sweep", 90, states=32, even=False).hot_loop["LDG"] > 0
    assert compile_scan("reverse_sweep", 90, states=32, known={"WORDS": False}).hot_loop["LDG"] > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", HELPERS)
def test_the_passing_of_states_compiles_without_spills(name, architecture):
    assert compile_scan(name, architecture).stack == 0


def test_inner_loops_are_as_short_as_they_were():
    """Instructions of one token and 64 channels for sm_90, with a tenth to spare for other compilers: 323, 520, 523."""
    bounds = {"forward": 355, "forward_sweep": 575, "reverse_sweep": 575}
    for name, bound in bounds.items():
        loop = compile_scan(name, 90).hot_loop
        assert 200 < loop.total() < bound, name
        # An exponential for each of a lane's states, of which a warp has 16 · 64, and a few for each channel.
        assert 32 < loop["MUFU"] <= 40, name


def test_enough_warps_are_resident_to_keep_the_exponentials_busy():
    for name, warps in (("forward", 16), ("forward_sweep", 8), ("reverse_sweep", 8)):
        assert compile_scan(name, 90).resident_warps() >= warps, name


def test_the_spill_check_sees_spills():
    assert compile_scan("reverse_sweep", 90, maxnreg=128).stack > 0


@pytest.mark.parametrize("name", SCAN_KERNELS)
def test_compiles_without_optional_inputs_and_with_one_channel(name):
    one = dict.fromkeys(("E", "width", "stride_u", "stride_delta", "stride_z"), 1)
    for compiled in (compile_scan(name, 90, flags=False), compile_scan(name, 90, even=False, known=one)):
        assert compiled.hot_loop.total() > 0
        assert compiled.hot_loop["LDL"] + compiled.hot_loop["STL"] == 0  # a scalar outside the loop may be spilled


def test_the_loop_counts_see_what_the_compiler_adds():
    """With states over several warps Σ_n goes through shared memory, behind barriers."""
    compiled = compile_scan("reverse_sweep", 90, num_warps=4)
    assert compiled.hot_loop["BAR"] > compile_scan("reverse_sweep", 90).hot_loop["BAR"]
