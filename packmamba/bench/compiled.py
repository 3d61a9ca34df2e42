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

ARCHITECTURES = (80, 90, 100, 120)
"""Compute capabilities times ten: A100, H100/H200, B200, consumer Blackwell."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class CompiledKernel:
    registers: int
    """Of one thread."""
    stack: int
    """Bytes of one thread: what was spilled."""
    shared: int
    """Bytes of shared memory that the kernel's own code uses, of one program."""
    layout_conversions: int
    instructions: Counter[str]
    """SASS opcodes without their suffixes, counted once each (a loop's body once)."""
    hot_loop: Counter[str]
    """The opcodes of the largest innermost loop."""
    hot_conversions: tuple[str, ...]
    """The tensor types whose layout an innermost loop of the TTGIR converts, e.g. "16x64xf32"."""

    def resident_warps(self, num_warps: int = 1) -> int:
        """Warps that the registers of an SM (64 Ki, given out in eights) have room for, `num_warps` at a time."""
        registers = 8 * -(-self.registers // 8)
        return min(64, 65_536 // (32 * registers * num_warps) * num_warps)


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
        sass = _run("nvdisasm", file.name)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", sass, re.MULTILINE)
    return CompiledKernel(
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        shared=binary.metadata.shared,
        layout_conversions=binary.asm["ttgir"].count("ttg.convert_layout"),
        instructions=Counter(opcodes),
        hot_loop=_hot_loop(sass),
        hot_conversions=_hot_conversions(binary.asm["ttgir"]),
    )


def _hot_loop(sass: str) -> Counter[str]:
    opcodes, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(opcodes)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)(.*);", line):
            opcodes.append(instruction[1])
            target = re.search(r"\.L_x_\d+", instruction[2])
            if instruction[1] == "BRA" and target and target[0] in labels:
                loops.append((labels[target[0]], len(opcodes)))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [opcodes[begin:end] for begin, end in inner]
    return Counter(max(bodies, key=len, default=[]))


def _hot_conversions(ttgir: str) -> tuple[str, ...]:
    """Of each loop without another inside: what lies between its `scf.for` and the next `scf.yield`."""
    loops = re.findall(r"scf\.for ((?:(?!scf\.for).)*?)\n\s+scf\.yield", ttgir, re.DOTALL)
    assert loops or "scf.for" not in ttgir
    return tuple(re.findall(r"ttg\.convert_layout .*-> tensor<([\dxa-z]+)", "".join(loops)))


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
