"""The kernels of the gated RMS normalisation compile for GPUs that are not here, without spills."""

from __future__ import annotations

import pytest

from benchmarks.compiler.instructions import NORM_KERNELS, compile_norm

pytestmark = pytest.mark.slow

ARCHITECTURES = (80, 90, 100, 120)


@pytest.mark.parametrize("name", NORM_KERNELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "group_size"), [("bf16", 64), ("bf16", 8192), ("fp32", 5120)])
def test_compiles_without_spills(name, architecture, dtype, group_size):
    for gate, last in ((True, False), (True, True)):
        compiled, _ = compile_norm(name, architecture, dtype=dtype, group_size=group_size, gate=gate, gate_last=last)
        assert compiled.stack == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_enough_warps_are_resident_to_hide_memory_latency(architecture):
    for name in NORM_KERNELS:
        compiled, warps = compile_norm(name, architecture, group_size=4096)
        assert compiled.resident_warps(warps) >= 16


def test_the_spill_check_sees_spills():
    assert compile_norm("backward", 90, group_size=8192, num_warps=1)[0].stack > 0
