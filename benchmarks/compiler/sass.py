"""Reads nvdisasm's listing of a kernel: its instructions, what each tells the scheduler, and its largest inner loop.

From Volta on an instruction has 128 bits, of which 105 to 125 are its control code: from the lowest, a stall count (4),
a yield flag (1), the scoreboard it sets when its result is there (3), the one it sets when its operands are read (3),
the scoreboards it waits for (6) and the operands to be used again (4). Source: Jia et al., "Dissecting the NVIDIA Volta
GPU architecture via microbenchmarking", 2018; NVIDIA has not published it. For sm_80 and sm_90
it is known to hold; for sm_100 and sm_120 it is unverified.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NO_SCOREBOARD = 7

_GUARD = re.compile(r"^@!?U?P\w+\s+")
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
_UPPER_HALF = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")


@dataclass(frozen=True)
class Instruction:
    text: str
    """As nvdisasm writes it, e.g. "@P0 LDG.E.64 R2, [R4.64+0x8]"."""
    stall: int = 1
    """Cycles before the warp's next instruction may be issued."""
    yield_flag: int = 1
    """The bit as it stands."""
    sets: int = NO_SCOREBOARD
    """The scoreboard, of six, that is busy until the result is there; 7 for none."""
    reads: int = NO_SCOREBOARD
    """The scoreboard that is busy until the operands are read; 7 for none."""
    waits: int = 0
    """The scoreboards that have to be free first: bit i for scoreboard i."""

    @property
    def name(self) -> str:
        """With suffixes and without the guard, e.g. "LDG.E.64"."""
        return _GUARD.sub("", self.text).split()[0]

    @property
    def opcode(self) -> str:
        """Without suffixes, e.g. "LDG"."""
        return self.name.split(".")[0]


def decode(text: str, upper: int) -> Instruction:
    """An instruction from its text and the upper 64 of its 128 bits."""
    control = upper >> 41
    return Instruction(
        text=text,
        stall=control & 15,
        yield_flag=control >> 4 & 1,
        sets=control >> 5 & 7,
        reads=control >> 8 & 7,
        waits=control >> 11 & 63,
    )


def parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """All instructions of `nvdisasm -hex`, and the index of the instruction after each label."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    text = None
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.match(line):
            text = instruction[1]
        elif text is not None and (upper := _UPPER_HALF.match(line)):
            instructions.append(decode(text, int(upper[1], 16)))
            text = None
    return instructions, labels


def hot_loop(instructions: list[Instruction], labels: dict[str, int]) -> tuple[Instruction, ...]:
    """The largest innermost loop; empty where there is none."""
    loops = []
    for index, instruction in enumerate(instructions):
        target = re.search(r"\.L_x_\d+", instruction.text)
        if instruction.opcode == "BRA" and target and labels.get(target[0], index + 1) <= index:
            loops.append((labels[target[0]], index + 1))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    begin, end = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    return tuple(instructions[begin:end])
