"""The model of instruction issue, on loops whose answer is known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.compiler import instructions
from benchmarks.compiler.compiled import CompiledKernel
from benchmarks.compiler.instructions import compile_conv, compile_scan
from benchmarks.compiler.issue_model import BRANCH, GLOBAL, L2, MODELLED, model, profile, rows_alike, simulate, timing
from benchmarks.compiler.sass import Instruction, hot_loop, parse

FFMA = Instruction("FFMA R0, R1, R2, R3")
LOAD = Instruction("LDG.E R4, [R2.64]", sets=2)
USE = Instruction("FADD R5, R4, R4", waits=1 << 2)

LISTING = """
.L_x_1:
        /*0000*/              @!P0 LDG.E.64 R26, [R30.64] ;    /* 0x0000001a1e1a8981 */
                                                               /* 0x000ea8000c1e1b00 */
.L_x_0:
        /*0010*/                   S2R R113, SR_CTAID.X ;      /* 0x0000000000717919 */
                                                               /* 0x000e620000002500 */
        /*0020*/                   MUFU.EX2 R218, R218 ;       /* 0x000000da00da7308 */
                                                               /* 0x0043e20000000800 */
        /*0030*/              @P0  BRA `(.L_x_0) ;             /* 0xffffffe000000947 */
                                                               /* 0x000fea000383ffff */
        /*0040*/                   BRA `(.L_x_1) ;             /* 0xffffffb000007947 */
                                                               /* 0x000fea000383ffff */
.L_x_2:
        /*0050*/                   BRA `(.L_x_2);              /* 0xfffffff000007947 */
                                                               /* 0x000fc0000383ffff */
"""


def compiled(architecture: int = 90, registers: int = 64, shared: int = 0, loop=(FFMA,)) -> CompiledKernel:
    return CompiledKernel(architecture, registers, 0, shared, 0, Counter(), loop, ())


def test_control_codes_are_decoded():
    load, special_register, exponential, branch, *_, last = parse(LISTING)[0]
    assert (load.opcode, load.name, load.text) == ("LDG", "LDG.E.64", "@!P0 LDG.E.64 R26, [R30.64]")
    assert (load.stall, load.yield_flag, load.sets, load.reads, load.waits) == (4, 1, 2, 7, 0)
    assert (special_register.stall, special_register.yield_flag, special_register.sets) == (1, 1, 1)
    assert (exponential.stall, exponential.sets, exponential.reads, exponential.waits) == (1, 7, 1, 0b000100)
    assert (branch.opcode, branch.stall, branch.sets, branch.reads) == ("BRA", 5, 7, 7)
    assert (last.stall, last.yield_flag, last.waits) == (0, 0, 0)


def test_the_hot_loop_is_the_largest_without_another_inside():
    found, labels = parse(LISTING)
    assert labels == {".L_x_1": 0, ".L_x_0": 1, ".L_x_2": 5}
    assert [i.opcode for i in hot_loop(found, labels)] == ["S2R", "MUFU", "BRA"]
    assert hot_loop(found[:1], labels) == ()


def test_independent_instructions_take_a_cycle_each_and_the_branch_of_one_warp():
    for number in (1, 20):
        assert simulate([FFMA] * number, 1).cycles == number - 1 + BRANCH
    assert simulate([FFMA] * 20, 4).cycles == pytest.approx(20, abs=1)


def test_stalls_hold_one_warp_up_and_other_warps_fill_them():
    loop = [replace(FFMA, stall=4)] * 20
    assert simulate(loop, 1).cycles == 4 * 19 + BRANCH
    assert simulate(loop, 2).cycles == pytest.approx((4 * 19 + BRANCH) / 2, abs=1)
    assert simulate(loop, 8).cycles == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    ("text", "cycles"),
    [
        ("FMUL R0, R1, R2", 1),
        ("@P0 IMAD.WIDE R0, R1, R2, R3", 2),
        ("LOP3.LUT R0, R1, R2, R3, 0x1, !PT", 2),
        ("UIADD3 UR4, UR4, 0x1, URZ", 2),
        ("SHFL.BFLY PT, R0, R1, 0x1, 0x1f", 4),
        ("MUFU.EX2 R0, R1", 8),
        ("LDG.E.64 R0, [R2.64]", 8),
        ("STG.E.128 [R2.64], R4", 16),
        ("LDS.128 R0, [R2]", 16),
        ("LDS.128 R0, [UR2]", 4),  # every lane's address is the same
        ("LDSM.16.M88.4 R0, [R2]", 16),
    ],
)
def test_a_pipe_bounds_many_warps(text, cycles):
    assert timing(Instruction(text)).cycles == cycles
    assert simulate([Instruction(text)] * 20, 12).cycles == pytest.approx(20 * cycles, rel=0.05)


def test_pipes_work_side_by_side():
    loop = [Instruction("MUFU.EX2 R0, R1"), *[FFMA] * 6] * 4
    assert simulate(loop, 12).cycles == pytest.approx(8 * 4, rel=0.05)


def test_a_wait_takes_as_long_as_a_load_and_more_warps_hide_it():
    loop = [LOAD, *[FFMA] * 50, USE]
    alone = simulate(loop, 1)
    assert alone.cycles == timing(LOAD).cycles + GLOBAL + BRANCH
    assert simulate([LOAD, *[FFMA] * 50, replace(USE, waits=1 << 3)], 1).cycles == 51 + BRANCH
    assert simulate(loop, 2).cycles == pytest.approx(alone.cycles / 2, rel=0.05)
    assert simulate(loop, 16).cycles == pytest.approx(52, rel=0.05)


def test_operands_that_are_still_read_are_waited_for():
    loop = [replace(LOAD, sets=7, reads=2), replace(USE, waits=1 << 2)]
    assert simulate(loop, 1).cycles == 4 + 6 + BRANCH


def test_waits_are_those_of_the_waiting_instruction():
    loop = [LOAD, *[FFMA] * 50, USE]
    modelled = simulate(loop, 1)
    assert modelled.waits[:-1] == (0,) * 51
    assert modelled.waits[-1] == 4 + GLOBAL - 51
    _, first, *rest = profile(loop, modelled, most=3)
    assert first.split() == ["51", str(float(4 + GLOBAL - 51)), "1", "2", "-", "-", *USE.text.split()]
    assert len(rest) == 2


@pytest.mark.parametrize("warps", [1, 3])
def test_waits_and_stalls_add_up_to_the_time_of_a_pass(warps):
    loop = [LOAD, *[replace(FFMA, stall=2)] * 9, Instruction("MUFU.EX2 R0, R1"), USE]
    modelled = simulate(loop, warps, passes=200)
    stalls = sum(i.stall for i in loop[:-1]) + BRANCH
    assert sum(modelled.waits) + stalls == pytest.approx(modelled.cycles * warps, rel=0.01)


def test_loads_at_offsets_of_one_register_are_rows_that_lanes_share():
    texts = (
        "LDG.E R1, [R2.64]",
        "LDG.E.128 R4, desc[UR4][R8.64]",
        "LDG.E.128 R4, desc[UR4][R8.64+0x10]",
        "LDS R1, [R2+0x4]",
    )
    loop = [replace(LOAD, text=text) for text in texts]
    assert rows_alike(loop) == {1, 2}
    kept = simulate([LOAD, USE], 1).cycles - simulate([LOAD, USE], 1, alike={0}).cycles
    assert kept == GLOBAL - L2


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "num_warps", "warps"),
    [
        (90, 64, 0, 1, 32),
        (90, 96, 0, 1, 20),  # five in each sub-partition, though 21 would fit one file of 64 Ki
        (90, 97, 0, 1, 16),
        (90, 16, 0, 1, 32),  # 32 programs
        (90, 16, 0, 4, 64),
        (120, 16, 0, 4, 48),
        (90, 128, 0, 8, 16),
        (90, 64, 24 * 1024, 1, 9),  # 228 KiB in 25s
        (80, 64, 24 * 1024, 1, 6),  # 164 KiB in 25s
        (90, 64, 24 * 1024 + 1, 2, 18),
        (90, 64, 227 * 1024, 4, 4),
    ],
)
def test_resident_warps_follow_from_registers_shared_memory_and_limits(
    architecture, registers, shared, num_warps, warps
):
    assert compiled(architecture, registers, shared).resident_warps(num_warps) == warps


@pytest.mark.parametrize("architecture", MODELLED)
def test_real_kernels_take_longer_than_their_bounds_and_not_much(architecture):
    for kernel in (compile_conv("forward", architecture), compile_scan("forward", architecture)):
        loop = kernel.hot_loop
        bound = max(loop.total(), 8 * loop["MUFU"])
        assert any(i.waits for i in kernel.loop)
        modelled = model(kernel)
        assert bound <= modelled.cycles < 3 * bound
        assert len(modelled.waits) == loop.total()


def test_what_cannot_be_modelled_is_refused():
    with pytest.raises(ValueError, match="sm_100 is not modelled; available: 80, 90"):
        model(compiled(architecture=100))
    with pytest.raises(ValueError, match="0 instructions"):
        model(compiled(loop=()))
    with pytest.raises(ValueError, match="0 warps"):
        simulate([FFMA], 0)


def test_the_profile_is_printed_for_modelled_architectures_only(capsys):
    assert instructions.main(["--architectures", "90", "--states", "8", "--profile", "selective_scan.forward"]) == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert "modelled, not measured" in title
    assert header.split()[:2] == ["at", "waits"]
    waits = [float(line.split()[1]) for line in lines]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > 0
    for arguments, message in (
        (["--architectures", "100"], "sm_100 is not modelled; available: 80, 90"),
        (["--output", "x.json"], "--output is for the counts"),
    ):
        with pytest.raises(SystemExit) as error:
            instructions.main(["--profile", "selective_scan.forward", *arguments])
        assert error.value.code == 2
        assert message in capsys.readouterr().err
