"""Runs every benchmark that needs a GPU, writes their results where the READMEs' tables are drawn from, and pictures.

    python -m benchmarks gpu

Each runs in a process of its own, so that one that fails, or leaves the GPU in disorder, does not stop the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "kernels",
        ("--grid", "targets", "--output", "{results}/kernels.json", "--png", "{pictures}/kernels.png"),
    ),
    ("scaling", ("--output", "{results}/scaling.json", "--png", "{pictures}/scaling.png")),
    ("counters", ("--output", "{results}/counters.json")),
    ("host", ("--output", "{results}/host.json")),
    ("accuracy", ("--output", "{results}/accuracy_gpu.json")),  # accuracy.json is the CPU's
)
"""What runs, in this order: a benchmark's name and its arguments, with places for two folders. `--png` and what follows
it are left out where there is no matplotlib."""


def arguments_of(part: tuple[str, ...], results: Path, pictures: Path, draw: bool) -> list[str]:
    """A part's arguments with its folders."""
    arguments = [argument.format(results=results, pictures=pictures) for argument in part]
    if not draw and "--png" in arguments:
        at = arguments.index("--png")
        del arguments[at : at + 2]
    return arguments


def run_part(name: str, arguments: Sequence[str]) -> int:
    """The exit code of one benchmark in its own process, whose output goes where this one's goes."""
    return subprocess.run([sys.executable, "-m", "benchmarks", name, *arguments], check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 where a part failed, or 130 where it was interrupted. Leaves through argparse with 2 where there is
    no GPU."""
    names = [name for name, _ in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description=f"Runs {', '.join(names)} on a GPU; one that fails does not stop the others.",
        epilog="`make readme-tables` draws the tables from the results.",
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="leave out the others")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks/results"),
        help="folder of the JSON files (default: %(default)s)",
    )
    parser.add_argument(
        "--pictures", type=Path, default=Path("runs/gpu"), help="folder of the pictures (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; `make bench` measures what a CPU can")
    draw = importlib.util.find_spec("matplotlib") is not None
    if not draw:
        print("no pictures: they need matplotlib, pip install 'packmamba[plots]'")
    codes: dict[str, int] = {}
    try:
        for name, part in PARTS:
            if name in options.only:
                arguments = arguments_of(part, options.results, options.pictures, draw)
                print(f"\n== python -m benchmarks {name} {' '.join(arguments)}", flush=True)
                start = time.perf_counter()
                codes[name] = run_part(name, arguments)
                print(f"== {name}: {_outcome(codes[name])}, {time.perf_counter() - start:.0f} s", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    failed = [name for name, code in codes.items() if code != 0]
    print(f"\nfailed: {', '.join(failed) or 'none'}; results in {options.results}; next: make readme-tables")
    return 1 if failed else 0


def _outcome(code: int) -> str:
    return "done" if code == 0 else f"failed with exit code {code}"


if __name__ == "__main__":
    sys.exit(main())
