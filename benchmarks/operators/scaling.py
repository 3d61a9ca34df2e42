"""Times the operators for each token against the tokens of a pack, which should not matter, nor documents' lengths.

    python -m benchmarks scaling --png runs/scaling.png

For documents as long as those of a corpus, one document, and documents of about 10 tokens. The schedule is built on the
host before the time is taken, as in training. A size that runs out of memory is skipped. Needs torch, triton and numpy.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.collect import collect, draw, require_matplotlib
from benchmarks.operators.cases import DTYPES, OPS, Case
from benchmarks.operators.plots import plot_scaling
from benchmarks.operators.tables import nanoseconds, scaling_table, spreads
from benchmarks.operators.timing import PARTS, check, describe, try_measure
from packmamba.compare.report import add_device, chosen_device, positive
from packmamba.compare.tables import markdown
from packmamba.data.lengths import DISTRIBUTIONS
from packmamba.environment import describe_environment

DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {"tokens": [2**12, 2**14, 2**16, 2**18, 2**20], "channels": 4096, "dtype": "bfloat16", "runs": 30},
    "cpu": {"tokens": [2**10, 2**12, 2**14], "channels": 128, "dtype": "float32", "runs": 7},
}
"""What is measured where the options say nothing."""

MEASURED = ("lognormal", "giant", "tiny")
"""Document lengths where the options say nothing."""

TARGET = 5.0
"""Percent by which the time for each token may be off its median over all sizes."""


def run(cases: Sequence[Case], device: torch.device, *, runs: int, on_result: Callable[[dict[str, Any]], None]) -> None:
    """Measures packmamba on every case and hands each result on as it comes. Raises RuntimeError if an operator
    disagrees with the definition."""
    for case in cases:
        check("packmamba", case, device)
        for part in PARTS:
            on_result(describe("packmamba", case, part) | try_measure("packmamba", case, part, device, runs))


def render_row(row: dict[str, Any]) -> str:
    size = f"{row['op']:<15} {row['part']:<9} {row['distribution']:<10} {row['tokens']:>10,} {row['documents']:>10,} "
    time = nanoseconds(row)
    return size + (row["skipped"] if time is None else f"{row['milliseconds']['median']:>10.3f} {time:>10.3f}")


HEADER = (
    f"{'operator':<15} {'part':<9} {'lengths':<10} {'T':>10} {'documents':>10} {'median ms':>10} {'ns a token':>10}"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scaling",
        description="Times packmamba's operators for each token against the tokens of a pack.",
        epilog="document lengths: " + "; ".join(f"{name}: {meaning}" for name, meaning in DISTRIBUTIONS.items()),
    )

    def default(key: str) -> str:
        return f"(default: {DEFAULTS['cuda'][key]} on CUDA, {DEFAULTS['cpu'][key]} on the CPU)"

    add_device(parser)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), help="operators (default: all)")
    parser.add_argument("--tokens", nargs="+", type=positive, help=f"T, tokens of a pack {default('tokens')}")
    parser.add_argument("--channels", type=positive, help=f"E {default('channels')}")
    parser.add_argument("--states", type=positive, default=16, help="N, of the scan (default: 16)")
    parser.add_argument(
        "--distributions", nargs="+", choices=list(DISTRIBUTIONS), default=list(MEASURED),
        help=f"document lengths (default: {' '.join(MEASURED)})",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=list(DTYPES), help=default("dtype"))
    parser.add_argument("--runs", type=positive, help=f"timed runs of each {default('runs')}")
    parser.add_argument("--output", type=Path, default=Path("runs/scaling.json"), help="JSON (default: %(default)s)")
    parser.add_argument("--png", type=Path, help="a picture too (needs the `plots` extra)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 130 where it was interrupted. Wrong options leave through argparse with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    device = chosen_device(parser, options)
    if options.png is not None:
        require_matplotlib(parser)
    for key, value in DEFAULTS[device.type].items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    cases = [
        Case(
            op,
            tokens,
            options.channels,
            options.states if op == "selective_scan" else None,
            name,
            DTYPES[options.dtype],
        )
        for op, name, tokens in itertools.product(options.ops, options.distributions, options.tokens)
    ]
    report: dict[str, Any] = {"benchmark": "scaling", "results": [], "environment": describe_environment(device)}
    rows, total = report["results"], len(PARTS) * len(cases)
    title = f"{report['environment']['device']}, E = {options.channels:,}, N = {options.states}, {options.dtype}"
    print(f"{title}, torch {torch.__version__}")
    print(HEADER)
    code = collect(
        lambda keep: run(cases, device, runs=options.runs, on_result=keep), report, options.output, total, render_row
    )
    if not rows:
        return code
    print(f"\nnanoseconds a token; the spread is to be within ±{TARGET:.0f}%:\n{markdown(scaling_table(rows))}")
    wide = [f"{' '.join(key)} ±{spread:.1f}%" for key, spread in spreads(rows).items() if (spread or 0) > TARGET]
    print(f"beyond ±{TARGET:.0f}%: {', '.join(wide) or 'none'}")
    print(f"results: {options.output}")
    draw(plot_scaling, rows, options.png, title)
    return code


if __name__ == "__main__":
    sys.exit(main())
