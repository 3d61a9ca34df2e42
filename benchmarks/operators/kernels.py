"""Times the operators over a grid of sizes, document lengths and implementations, forward and backward apart.

    python -m benchmarks kernels --ops causal_conv1d --tokens 4096 65536
    python -m benchmarks kernels --grid targets

Each time is the median of many runs, each on fresh random data. Before an implementation is timed its output and
gradients have to agree with the definition on a smaller pack. On CUDA two lower bounds stand beside each time: bytes
(every tensor read or written once, at the copy speed measured first) and special functions (16 a clock and SM), and
the target where there is one. Results are written after each measurement, so an interrupted run keeps what it has.
Needs torch, triton and numpy.
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
from benchmarks.operators.cases import DTYPES, IMPLEMENTATIONS, OPS, Case, why_not
from benchmarks.operators.plots import plot_times
from benchmarks.operators.tables import HEADER, LIMITS_HEADER, packed_over_unpacked, render_row, speedups
from benchmarks.operators.timing import PARTS, bounds, check, describe, device_limits, try_measure
from packmamba.compare.report import add_device, chosen_device, positive
from packmamba.data.lengths import DISTRIBUTIONS
from packmamba.environment import describe_environment

DEFAULTS = {
    "cuda": {"tokens": [4096, 16_384, 65_536], "channels": [1536, 4096], "dtype": "bfloat16", "runs": 30},
    "cpu": {"tokens": [4096], "channels": [256], "dtype": "float32", "runs": 7},
}
"""What is measured where the options say nothing."""

STATES = 16
"""N where the options say nothing."""


def _targets_grid() -> tuple[Case, ...]:
    """The sizes that have a target, and around them: more states, other dtypes, rows of one length, one document."""
    cases = []
    for op in OPS:
        states = STATES if op == "selective_scan" else None
        for distribution in ("lognormal", "rows", "giant"):
            cases.append(Case(op, 65_536, 4096, states, distribution, torch.bfloat16))
        cases.append(Case(op, 4096, 4096, states, "lognormal", torch.bfloat16))
        for dtype in (torch.float16, torch.float32):
            cases.append(Case(op, 65_536, 4096, states, "lognormal", dtype))
    for states, channels in itertools.product((64, 128), (1536, 5120)):
        cases.append(Case("selective_scan", 65_536, channels, states, "lognormal", torch.bfloat16))
    return tuple(cases)


GRIDS = {"targets": _targets_grid()}
"""Cases by the name of a grid."""

TARGETS = {
    ("selective_scan", 65_536, "forward"): 1.9,
    ("selective_scan", 65_536, "backward"): 6.0,
    ("causal_conv1d", 65_536, "forward"): 0.30,
    ("causal_conv1d", 65_536, "backward"): 0.60,
    ("selective_scan", 4096, "forward"): 0.15,
    ("selective_scan", 4096, "backward"): 0.45,
}
"""Milliseconds on an H200 at most, in bf16 with E = 4,096 and N = 16, by operator, tokens and part."""


def target(name: str, case: Case, part: str, device: torch.device) -> float | None:
    """Milliseconds that packmamba should take at most on CUDA; None where there is no target."""
    if name != "packmamba" or device.type != "cuda":
        return None
    if case.channels != 4096 or case.states not in (None, STATES) or case.dtype != torch.bfloat16:
        return None
    return TARGETS.get((case.op, case.tokens, part))


def run(
    cases: Sequence[Case],
    device: torch.device,
    *,
    runs: int,
    naive_tokens: int,
    on_result: Callable[[dict[str, Any]], None],
) -> None:
    """Measures every case with every implementation of its operator and hands each result on as it comes.

    Raises RuntimeError if packmamba's own operator disagrees with the definition; a peer that does, or that fails, is
    reported as such and not timed.
    """
    limits = device_limits(device)
    for case in cases:
        for name, implementation in IMPLEMENTATIONS.items():
            if case.op not in implementation.ops:
                continue
            reason = why_not(name, case, device, naive_tokens)
            if reason is None:
                reason = _check_peer(name, case, device) if implementation.peer else check(name, case, device)
            for part in PARTS:
                if reason is None:
                    times = try_measure(name, case, part, device, max(1, runs // 3) if name == "naive" else runs)
                else:
                    times = {"skipped": reason, "milliseconds": None}
                limit = {
                    "bounds_milliseconds": bounds(case, part, limits),
                    "target_milliseconds": target(name, case, part, device),
                }
                on_result(describe(name, case, part) | times | limit)


def _check_peer(name: str, case: Case, device: torch.device) -> str | None:
    try:
        check(name, case, device)
    except Exception as error:  # whatever somebody else's package raises is its result
        return f"failed: {error}"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks kernels",
        description="Times the packed operators, forward and backward apart, beside their peers where those are there.",
        epilog="document lengths: " + "; ".join(f"{name}: {meaning}" for name, meaning in DISTRIBUTIONS.items()),
    )
    default = "default: %s on CUDA, %s on the CPU"

    def defaults(key: str) -> str:
        return default % (DEFAULTS["cuda"][key], DEFAULTS["cpu"][key])

    add_device(parser)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), help="operators (default: all)")
    parser.add_argument("--grid", choices=list(GRIDS), help="sizes by name, instead of the next five options")
    parser.add_argument("--tokens", nargs="+", type=positive, help=f"T, tokens of a pack ({defaults('tokens')})")
    parser.add_argument("--channels", nargs="+", type=positive, help=f"E ({defaults('channels')})")
    parser.add_argument("--states", nargs="+", type=positive, help=f"N, of the scan (default: {STATES})")
    parser.add_argument(
        "--distributions", nargs="+", choices=list(DISTRIBUTIONS), help="document lengths (default: all)"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), help=defaults("dtype"))
    parser.add_argument("--runs", type=positive, help=f"timed runs of each ({defaults('runs')}; a third for naive)")
    parser.add_argument(
        "--naive-tokens", type=int, help="longest pack of the definition; 0: leave it out (default: 4096; of a grid 0)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/kernels.json"), help="JSON (default: %(default)s)")
    parser.add_argument("--png", type=Path, help="a picture too (needs the `plots` extra)")
    return parser


def _cases(parser: argparse.ArgumentParser, options: argparse.Namespace, device: torch.device) -> list[Case]:
    if options.grid is not None:
        for name in ("tokens", "channels", "states", "distributions", "dtype"):
            if getattr(options, name) is not None:
                parser.error(f"--grid {options.grid} says which sizes; leave out --{name}")
        return [case for case in GRIDS[options.grid] if case.op in options.ops]
    default = DEFAULTS[device.type]
    dtype = DTYPES[options.dtype or default["dtype"]]
    sizes = itertools.product(
        options.ops,
        options.tokens or default["tokens"],
        options.channels or default["channels"],
        options.distributions or DISTRIBUTIONS,
    )
    return [
        Case(op, tokens, channels, states, distribution, dtype)
        for op, tokens, channels, distribution in sizes
        for states in (options.states or [STATES] if op == "selective_scan" else [None])
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 130 where it was interrupted. Wrong options leave through argparse with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    device = chosen_device(parser, options)
    if options.png is not None:
        require_matplotlib(parser)
    cases = _cases(parser, options, device)
    if options.naive_tokens is None:
        options.naive_tokens = 4096 if options.grid is None else 0
    report: dict[str, Any] = {"benchmark": "kernels", "results": [], "environment": describe_environment(device)}
    total = len(PARTS) * sum(case.op in i.ops for case in cases for i in IMPLEMENTATIONS.values())
    print(f"{report['environment']['device']}, torch {torch.__version__}")
    print(HEADER + (LIMITS_HEADER if device.type == "cuda" else ""))
    runs, naive_tokens = options.runs or DEFAULTS[device.type]["runs"], options.naive_tokens
    code = collect(
        lambda keep: run(cases, device, runs=runs, naive_tokens=naive_tokens, on_result=keep),
        report,
        options.output,
        total,
        render_row,
    )
    for line in itertools.chain(speedups(report["results"]), packed_over_unpacked(report["results"])):
        print(line)
    if report["results"]:
        print(f"results: {options.output}")
    draw(plot_times, report["results"], options.png, f"Median times, {report['environment']['device']}")
    return code


if __name__ == "__main__":
    sys.exit(main())
