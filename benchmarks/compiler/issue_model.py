"""A model of how one sub-partition of an SM (four to an SM) issues the inner loop of a kernel: modelled, not measured.

W resident warps walk through the same loop, each in order. In a cycle one instruction is issued, of the warp that was
served last if it can go on at once, else of the next one that can. A warp can when

- the stall count of its last instruction has passed;
- the scoreboards that its instruction waits for are free; and
- the pipe that executes the instruction takes it.

Known are the control codes (`benchmarks.compiler.sass`) and how often a pipe takes a warp's instruction: NVIDIA
publishes operations a cycle and SM. That gives, in cycles of a sub-partition: 1 for FADD, FMUL, FFMA; 2 for IMAD,
HFMA2; 2 for integers, comparisons, conversions to bf16 and moves (ALU); 8 for MUFU, I2F, F2I, F2F; 4 for each
wavefront of loads, stores and shuffles, since the four share one load/store unit; 1 for everything else.

Assumed are, in cycles:

- latencies from the issue to the scoreboard's release, beside the pipe's time: global memory 650, the L2 cache 200,
  shared memory 30 (LDSM 33), stack 35, shuffle 24, MUFU 22, stores and barriers 20, constants 30, ALU and the uniform
  data path 12; operands are read 6 after the pipe starts;
- 2 for an instruction of the uniform data path; 2 at least between two instructions of the load/store unit, whose
  queue holds 24 of its cycles;
- 8 at least from a loop's branch to its first instruction.

A load at one of several constant offsets of one register is taken for part of a row that every lane reads alike (B and
C of a token): one wavefront, from L2. Every other one is coalesced and from memory. A loop's body is a straight line:
guards hold, inner branches are not taken, calls cost one cycle.

Not modelled: DRAM bandwidth, the instruction cache, bank conflicts of shared memory and registers, tensor cores, and
warps that wait for each other at a barrier. Asynchronous copies (LDGSTS, DEPBAR) always arrive in time. Against kernels
that were timed on an H200 (compiled by Triton 3.6), the two that load a token ahead came within 10%; one that does not
was off by more than half, for there the latency of memory decides. So compare versions of a kernel; as a time, cycles
need a clock and a number of SMs besides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.compiler.compiled import CompiledKernel
from benchmarks.compiler.sass import NO_SCOREBOARD, Instruction

MODELLED = (80, 90)
"""Architectures whose control codes and pipes are known."""

GLOBAL, L2 = 650, 200
BRANCH = 8
OPERANDS = 6
QUEUE = 24
"""Cycles of work that the load/store unit accepts ahead."""

STARTS = (37, 211, 463, 5, 801)
"""Cycles between the starts of two warps, over which `model` averages."""

_FMA = {"FADD", "FMUL", "FFMA"}
_HALF_RATE = {"IMAD", "HFMA2"}
_SPECIAL = {"MUFU", "F2F", "F2I", "I2F"}
_ALU = {
    "CS2R", "F2FP", "FMNMX", "FSEL", "FSETP", "I2FP", "IABS", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "MOV", "P2R",
    "PLOP3", "PRMT", "R2P", "R2UR", "SEL", "SHF", "VIADD", "VIADDMNMX", "VIMNMX",
}  # fmt: skip
_MEMORY = {
    "ATOMG": 20, "LDG": GLOBAL, "LDL": 35, "LDS": 30, "LDSM": 33, "RED": 20, "SHFL": 24, "STG": 20, "STL": 20,
    "STS": 20, "STSM": 20,
}  # fmt: skip
"""Latency by opcode."""


class Timing(NamedTuple):
    pipe: str
    cycles: int
    """How long the pipe takes nothing else."""
    latency: int
    """From the end of those to the result."""


@dataclass(frozen=True)
class Modelled:
    cycles: float
    """Cycles of a sub-partition, for one warp's pass through the loop."""
    waits: tuple[float, ...]
    """Mean cycles, of each instruction, between the end of the stall, or branch, before it and its issue."""


def timing(instruction: Instruction, alike: bool = False) -> Timing:
    """alike: whether it loads what every lane reads."""
    opcode, name = instruction.opcode, instruction.name
    if opcode in _FMA:
        return Timing("fma", 1, 0)
    if opcode in _HALF_RATE:
        return Timing("half rate", 2, 0)
    if opcode in _SPECIAL:
        return Timing("special", 8, 22)
    if opcode in _ALU:
        return Timing("alu", 2, 12)
    if opcode == "LDC":
        return Timing("alu", 2, 30)
    if opcode == "BAR":
        return Timing("memory", 1, 20)
    if opcode == "LDGSTS":
        return Timing("memory", 4, 0)
    if opcode in _MEMORY:
        wide = 4 if re.search(r"\.(128|M88\.4)\b", name) else 2 if re.search(r"\.(64|M88\.2)\b", name) else 1
        if alike or (opcode == "LDS" and "[UR" in instruction.text):
            wide = 1
        return Timing("memory", 4 * wide, L2 if alike else _MEMORY[opcode])
    if opcode.startswith("U"):
        return Timing("uniform", 2, 12)
    return Timing("other", 1, 0)


def rows_alike(loop: Sequence[Instruction]) -> set[int]:
    """Which instructions load from an address that another one loads from at a constant offset."""
    addresses = {
        index: address
        for index, instruction in enumerate(loop)
        if instruction.opcode == "LDG" and (address := re.search(r"\[(R\d+)[^\]]*?(\+-?0x\w+)?\]", instruction.text))
    }
    rows = {address[1] for address in addresses.values() if address[2]}
    return {index for index, address in addresses.items() if address[1] in rows}


def simulate(
    loop: Sequence[Instruction],
    warps: int,
    *,
    start: int = STARTS[0],
    passes: int = 16,
    warm_up: int = 4,
    alike: Collection[int] = (),
) -> Modelled:
    """Issues `loop` until each of `warps` warps of a sub-partition has passed through it `passes` times.

    start: cycles between the starts of two warps. warm_up: passes that are not counted. alike: the loads whose address
    is every lane's. Raises ValueError for a loop without instructions, no warp, or passes that leave none to count.
    """
    if not loop or warps < 1 or not 0 < warm_up < passes:
        raise ValueError(f"{len(loop)} instructions, {warps} warps, {passes} passes after {warm_up}: nothing to model")
    timings = [timing(instruction, index in alike) for index, instruction in enumerate(loop)]
    waited_for = [[bit for bit in range(6) if instruction.waits >> bit & 1] for instruction in loop]
    ready = [warp * start % 977 for warp in range(warps)]
    at, done = [0] * warps, [0] * warps
    scoreboards = [[0] * (NO_SCOREBOARD + 1) for _ in range(warps)]
    pipes = dict.fromkeys((t.pipe for t in timings), 0)
    waits = [0] * len(loop)
    now = last = queue = 0
    counted_from: tuple[int, int] | None = None
    while True:
        warp, issue = last, -1
        for candidate in (last, *range(last + 1, warps), *range(last)):
            index = at[candidate]
            busy = scoreboards[candidate]
            earliest = max(
                now, ready[candidate], pipes[timings[index].pipe], *(busy[bit] for bit in waited_for[index])
            )  # fmt: skip
            if issue < 0 or earliest < issue or (warp == last and earliest == issue):
                warp, issue = candidate, earliest
                if issue == now:
                    break
        index = at[warp]
        instruction, (pipe, cycles, latency) = loop[index], timings[index]
        begin = issue
        if pipe == "memory":
            begin = max(queue, issue)
            queue = begin + cycles
            pipes[pipe] = max(issue + 2, queue - QUEUE)
        else:
            pipes[pipe] = issue + cycles
        board = scoreboards[warp]
        board[instruction.sets] = max(board[instruction.sets], begin + cycles + latency)
        board[instruction.reads] = max(board[instruction.reads], begin + cycles + OPERANDS)
        if counted_from:
            waits[index] += issue - ready[warp]
        ready[warp] = issue + max(1, instruction.stall)
        last, now = warp, issue + 1
        at[warp] += 1
        if at[warp] < len(loop):
            continue
        at[warp] = 0
        done[warp] += 1
        ready[warp] = max(ready[warp], issue + BRANCH)
        if counted_from is None and min(done) == warm_up:
            counted_from = issue, sum(done)
        elif counted_from and min(done) == passes:
            total = sum(done) - counted_from[1]
            return Modelled((issue - counted_from[0]) / total, tuple(wait / total for wait in waits))


def model(compiled: CompiledKernel, num_warps: int = 1) -> Modelled:
    """The kernel's inner loop with as many warps, `num_warps` a program, as a sub-partition has room for.

    Raises ValueError for an architecture that is not in `MODELLED`, and for a kernel without a loop.
    """
    if compiled.architecture not in MODELLED:
        raise ValueError(f"sm_{compiled.architecture} is not modelled; available: {', '.join(map(str, MODELLED))}")
    warps = max(1, compiled.resident_warps(num_warps) // 4)
    alike = rows_alike(compiled.loop)
    runs = [simulate(compiled.loop, warps, start=start, alike=alike) for start in STARTS]
    waits = zip(*(run.waits for run in runs), strict=True)
    return Modelled(sum(run.cycles for run in runs) / len(runs), tuple(sum(wait) / len(runs) for wait in waits))


def profile(loop: Sequence[Instruction], modelled: Modelled, most: int = 20) -> list[str]:
    """Lines for the `most` instructions that wait longest, the longest first."""
    order = sorted(range(len(loop)), key=lambda index: -modelled.waits[index])[:most]
    lines = [f"{'at':>5} {'waits':>7} {'stall':>6} {'for':>6} {'sets':>5} {'reads':>6}  instruction"]
    for index in order:
        instruction = loop[index]
        boards = "".join(str(bit) for bit in range(6) if instruction.waits >> bit & 1) or "-"
        sets, reads = ("-" if b == NO_SCOREBOARD else str(b) for b in (instruction.sets, instruction.reads))
        lines.append(
            f"{index:>5} {modelled.waits[index]:>7.1f} {instruction.stall:>6} {boards:>6} {sets:>5} {reads:>6}  "
            f"{instruction.text}"
        )
    return lines
