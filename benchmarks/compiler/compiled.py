"""Compiles a Triton kernel for a GPU that is not here, and reads what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.compiler.sass import Instruction, hot_loop, parse

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities times ten: A100, consumer Ampere, Ada, H100/H200, B200, consumer Blackwell."""


@dataclass(frozen=True)
class Occupancy:
    """What an SM has room for."""

    warps: int
    programs: int
    shared: int
    """Bytes, of which every program takes 1 KiB beside its own."""


SM = {
    80: Occupancy(warps=64, programs=32, shared=164 * 1024),
    86: Occupancy(warps=48, programs=16, shared=100 * 1024),
    89: Occupancy(warps=48, programs=24, shared=100 * 1024),
    90: Occupancy(warps=64, programs=32, shared=228 * 1024),
    100: Occupancy(warps=64, programs=32, shared=228 * 1024),
    120: Occupancy(warps=48, programs=24, shared=100 * 1024),
}
"""By architecture: CUDA Programming Guide, table "technical specifications per compute capability"."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class CompiledKernel:
    architecture: int
    registers: int
    """Registers of one thread."""
    stack: int
    """Bytes of one thread: what was spilled."""
    shared: int
    """Bytes of shared memory that the kernel's own code uses, of one program."""
    layout_conversions: int
    instructions: Counter[str]
    """SASS opcodes without their suffixes, counted once each (a loop's body once)."""
    loop: tuple[Instruction, ...]
    """The largest innermost loop."""
    hot_conversions: tuple[str, ...]
    """The tensor types whose layout an innermost loop of the TTGIR converts, e.g. "16x64xf32"."""

    @property
    def hot_loop(self) -> Counter[str]:
        """The opcodes of the largest innermost loop."""
        return Counter(instruction.opcode for instruction in self.loop)

    def resident_warps(self, num_warps: int = 1) -> int:
        """Warps, `num_warps` a program, that an SM has room for by registers, shared memory and its limits.

        Each of its four sub-partitions has 16 Ki registers, given out to a warp in 256s; shared memory is given out in
        128 bytes. The driver is taken to leave to shared memory all that an SM can give it.
        """
        sm = SM[self.architecture]
        warps = 16_384 // (256 * -(-self.registers // 8)) * 4
        shared = 128 * -(-self.shared // 128) + 1024
        return num_warps * min(min(warps, sm.warps) // num_warps, sm.shared // shared, sm.programs)


def compile_kernel(
    kernel: Any,
    pointers: dict[str, str],
    constants: dict[str, Any],
    *,
    architecture: int,
    aligned: Collection[str] = (),
    **options: Any,
) -> CompiledKernel:
    """Compiles for `architecture` as a launch with these arguments would.

    pointers: element type of each pointer argument that is given, e.g. {"x": "bf16"}; one that is neither here nor in
    `constants` is a 32-bit integer. constants: compile-time arguments, and None for pointers that are not given.
    aligned: integers that are divisible by 16; all pointers are. options: num_warps and the like.
    """
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else f"*{pointers[name]}" if name in pointers else "i32"
        for name in names
    }
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    divisible = [["tt.divisibility", 16]]
    attributes = {(i,): divisible for i, name in enumerate(names) if name in aligned or signature[name].startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = dict(re.findall(r"\b(REG|STACK):(\d+)", _run("cuobjdump", "-res-usage", file.name)))
        instructions, labels = parse(_run("nvdisasm", "-hex", file.name))
    return CompiledKernel(
        architecture=architecture,
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        shared=binary.metadata.shared,
        layout_conversions=binary.asm["ttgir"].count("ttg.convert_layout"),
        instructions=Counter(instruction.opcode for instruction in instructions),
        loop=hot_loop(instructions, labels),
        hot_conversions=_hot_conversions(binary.asm["ttgir"]),
    )


def _hot_conversions(ttgir: str) -> tuple[str, ...]:
    """The text of each loop without another inside: what lies between its `scf.for` and the next `scf.yield`."""
    loops = re.findall(r"scf\.for ((?:(?!scf\.for).)*?)\n\s+scf\.yield", ttgir, re.DOTALL)
    assert loops or "scf.for" not in ttgir
    return tuple(re.findall(r"ttg\.convert_layout .*-> tensor<([\dxa-z]+)", "".join(loops)))


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
