"""Times the operators over a grid of sizes, document lengths and implementations, forward and backward apart.

    packmamba bench kernels --ops causal_conv1d --tokens 4096 65536

Each time is the median of many runs, each on fresh random data. Before an implementation is timed its output and
gradients have to agree with the definition on a smaller pack. On CUDA two lower bounds stand beside each time: bytes
(every tensor read or written once, at the copy speed measured first) and special functions (16 a clock and SM).
Results are written after each measurement, so an interrupted run keeps what it has. Needs torch, triton and numpy.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from packmamba.bench.environment import describe_environment
from packmamba.bench.kernel_cases import (
    IMPLEMENTATIONS,
    OPS,
    Call,
    Case,
    Inputs,
    bytes_moved,
    make_inputs,
    naive,
    outputs_and_gradients,
    special_functions,
    why_not,
)
from packmamba.bench.report import write_report
from packmamba.data.lengths import DISTRIBUTIONS

PARTS = ("forward", "backward")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GRIDS = {
    "cuda": {"tokens": [4096, 16_384, 65_536], "channels": [1536, 4096], "dtype": "bfloat16", "runs": 30},
    "cpu": {"tokens": [4096], "channels": [256], "dtype": "float32", "runs": 7},
}
"""What is measured where the options say nothing."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 1e-2}
"""RMS error over RMS of an implementation's output and gradients against the definition in fp32."""

CHECKED_TOKENS, CHECKED_CHANNELS = 512, 64
"""Size of the pack that implementations are checked on."""


def check(name: str, case: Case, device: torch.device) -> None:
    """Raises RuntimeError if an implementation does not agree with the definition."""
    implementation = IMPLEMENTATIONS[name]
    small = replace(case, tokens=min(case.tokens, CHECKED_TOKENS), channels=min(case.channels, CHECKED_CHANNELS))
    if not implementation.resets:
        small = replace(small, distribution="giant")
    packing = small.packing()
    inputs = make_inputs(small, device, seed=0)
    exact = {key: value.detach().cpu().float().requires_grad_() for key, value in inputs.items()}
    dout = torch.randn(small.tokens, small.channels, generator=torch.Generator().manual_seed(1)).to(small.dtype)
    expected = outputs_and_gradients(naive(small, packing), exact, dout.float())
    actual = outputs_and_gradients(implementation.build(small, packing.to(device)), inputs, dout.to(device))
    for result, reference in expected.items():
        error = float((actual[result].cpu().float() - reference).norm() / reference.norm())
        if not error <= TOLERANCE[case.dtype]:
            raise RuntimeError(
                f"{name} differs from the definition in {result} of {small}: "
                f"RMS error {error:.1e}, allowed {TOLERANCE[case.dtype]:.0e}"
            )


def measure(name: str, case: Case, part: str, device: torch.device, runs: int) -> list[float]:
    """Milliseconds of each run, on new random data every time; two more runs go first and are not counted."""
    packing = case.packing().to(device)
    call = IMPLEMENTATIONS[name].build(case, packing)
    flush = torch.empty(2**28, dtype=torch.int8, device=device) if device.type == "cuda" else None
    times = [_time_once(call, make_inputs(case, device, seed), part, device, flush) for seed in range(runs + 2)]
    return times[2:]


def _time_once(call: Call, inputs: Inputs, part: str, device: torch.device, flush: Tensor | None) -> float:
    if part == "forward":
        with torch.no_grad():
            return _milliseconds(lambda: call(inputs), device, flush)
    out = call(inputs)
    dout = torch.randn_like(out)
    return _milliseconds(lambda: torch.autograd.grad(out, list(inputs.values()), dout), device, flush)


def _milliseconds(call: Callable[[], Any], device: torch.device, flush: Tensor | None) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    if flush is not None:
        flush.zero_()  # nothing of the inputs stays in the L2 cache
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def device_limits(device: torch.device) -> dict[str, float | None] | None:
    """Bytes a second of a large copy, and special functions a second of the whole GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(2**30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    times = [_milliseconds(lambda: target.copy_(source), device, None) for _ in range(12)][2:]
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "clock_rate", None)
    return {
        "bytes_per_second": 2 * source.numel() / (1e-3 * statistics.median(times)),
        "special_functions_per_second": kilohertz and 16 * 1e3 * kilohertz * properties.multi_processor_count,
    }


def bounds(case: Case, part: str, limits: dict[str, float | None] | None) -> dict[str, float | None] | None:
    """Milliseconds that bytes and special functions need at least."""
    if limits is None:
        return None
    bandwidth, rate = limits["bytes_per_second"], limits["special_functions_per_second"]
    return {
        "bytes": bandwidth and 1e3 * bytes_moved(case, part) / bandwidth,
        "special_functions": rate and 1e3 * special_functions(case) / rate,
    }


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
                reason = _check_peer(name, case, device) if implementation.package else check(name, case, device)
            for part in PARTS:
                row = asdict(case) | {
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "part": part,
                    "implementation": name,
                    "documents": case.packing().num_seqs,
                    "skipped": reason,
                    "milliseconds": None,
                    "bounds_milliseconds": bounds(case, part, limits),
                }
                if reason is None:
                    times = measure(name, case, part, device, max(1, runs // 3) if name == "naive" else runs)
                    row["milliseconds"] = {
                        "median": statistics.median(times),
                        "min": min(times),
                        "max": max(times),
                        "runs": len(times),
                    }
                on_result(row)


def _check_peer(name: str, case: Case, device: torch.device) -> str | None:
    try:
        check(name, case, device)
    except Exception as error:  # whatever somebody else's package raises is its result
        return f"failed: {error}"
    return None


def render_row(row: dict[str, Any]) -> str:
    """One line of the table; `HEADER` is its first."""
    states = "" if row["states"] is None else row["states"]
    size = (
        f"{row['op']:<15}{row['tokens']:>7}{row['channels']:>6}{states:>4} {row['distribution']:<10}{row['part']:<9}"
        f"{row['implementation']:<22}"
    )
    if row["skipped"]:
        return f"{size}{row['skipped']}"
    times = row["milliseconds"]
    line = f"{size}{times['median']:>10.3f}{times['min']:>10.3f}"
    for bound in (row["bounds_milliseconds"] or {}).values():
        line += f"{'?' if bound is None else f'{bound:.3f}':>8}"
    return line


HEADER = (
    f"{'operator':<15}{'T':>7}{'E':>6}{'N':>4} {'documents':<10}{'part':<9}{'implementation':<22}"
    f"{'median ms':>10}{'min ms':>10}"
)
BOUNDS_HEADER = f"{'bytes':>8}{'special':>8}"


def speedups(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How much faster than the definition packmamba is, forward alone and with the backward, where both were timed."""
    medians = {}
    for row in rows:
        if row["milliseconds"]:
            case = (row["op"], row["tokens"], row["channels"], row["states"], row["distribution"])
            medians.setdefault(case, {})[row["implementation"], row["part"]] = row["milliseconds"]["median"]
    for case, times in medians.items():
        if all((name, part) in times for name in ("packmamba", "naive") for part in PARTS):
            forward = times["naive", "forward"] / times["packmamba", "forward"]
            both = sum(times["naive", p] for p in PARTS) / sum(times["packmamba", p] for p in PARTS)
            op, tokens, channels, _, distribution = case
            yield (
                f"{op} T={tokens:,} E={channels:,} {distribution}: {forward:.1f}x the definition forward, "
                f"{both:.1f}x with the backward"
            )


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Yields what prints a line and moves the bar on; the bar needs rich and a terminal, the lines nothing."""
    if importlib.util.find_spec("rich") is None or not sys.stdout.isatty():
        yield lambda line: print(line, flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=total)

        def advance(line: str) -> None:
            bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
            bar.advance(task)

        yield advance


def plot(rows: Sequence[dict[str, Any]], png: Path, title: str) -> None:
    """Medians as bars: a panel for each operator and part, a group for each size and distribution; a black line is the
    bound by bytes."""
    from packmamba.bench.plots import COLOURS, import_pyplot

    def group(row: dict[str, Any]) -> str:
        states = "" if row["states"] is None else f" x {row['states']}"
        return f"{row['tokens']:,} x {row['channels']:,}{states}\n{row['distribution']}"

    plt = import_pyplot()
    timed = [row for row in rows if row["milliseconds"]]
    panels = list(dict.fromkeys((row["op"], row["part"]) for row in timed))
    figure, grid = plt.subplots(len(panels), 1, figsize=(9, 3 * len(panels)), squeeze=False, constrained_layout=True)
    for axes, (op, part) in zip(grid[:, 0], panels, strict=True):
        shown = [row for row in timed if (row["op"], row["part"]) == (op, part)]
        groups = list(dict.fromkeys(group(row) for row in shown))
        names = list(dict.fromkeys(row["implementation"] for row in shown))
        for i, name in enumerate(names):
            mine = [row for row in shown if row["implementation"] == name]
            at = [groups.index(group(row)) + 0.8 * ((i + 0.5) / len(names) - 0.5) for row in mine]
            medians = [row["milliseconds"]["median"] for row in mine]
            bars = axes.bar(at, medians, 0.75 / len(names), label=name, color=COLOURS[i % len(COLOURS)])
            axes.bar_label(bars, [f"{median:.3g}" for median in medians], fontsize=7)
        for row in shown:
            floor = (row["bounds_milliseconds"] or {}).get("bytes")
            if floor is not None:
                at = groups.index(group(row))
                axes.hlines(floor, at - 0.4, at + 0.4, color="black", linewidth=1)
        axes.set_xticks(range(len(groups)), groups, fontsize=7)
        axes.set(title=f"{op}, {part}", ylabel="ms")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(png, dpi=150)
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packmamba bench kernels",
        description="Times the packed operators, forward and backward apart, beside their peers where those are there.",
        epilog="document lengths: " + "; ".join(f"{name}: {meaning}" for name, meaning in DISTRIBUTIONS.items()),
    )
    default = "default: %s on CUDA, %s on the CPU"

    def defaults(key: str) -> str:
        return default % (GRIDS["cuda"][key], GRIDS["cpu"][key])

    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), help="operators (default: all)")
    parser.add_argument("--tokens", nargs="+", type=_positive, help=f"T, tokens of a pack ({defaults('tokens')})")
    parser.add_argument("--channels", nargs="+", type=_positive, help=f"E ({defaults('channels')})")
    parser.add_argument("--states", nargs="+", type=_positive, default=[16], help="N, of the scan (default: 16)")
    parser.add_argument(
        "--distributions", nargs="+", choices=list(DISTRIBUTIONS), default=list(DISTRIBUTIONS), help="document lengths"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), help=defaults("dtype"))
    parser.add_argument("--runs", type=_positive, help=f"timed runs of each ({defaults('runs')}; a third for naive)")
    parser.add_argument(
        "--naive-tokens", type=int, default=4096, help="longest pack of the definition; 0: leave it out"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/kernels.json"), help="JSON (default: %(default)s)")
    parser.add_argument("--png", type=Path, help="a picture too (needs the `plots` extra)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 130 where it was interrupted. Wrong options leave through argparse with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; use --device cpu")
    if options.png is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--png needs matplotlib: pip install 'packmamba[plots]'")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    grid = GRIDS[device.type]
    dtype = DTYPES[options.dtype or grid["dtype"]]
    sizes = itertools.product(
        options.ops, options.tokens or grid["tokens"], options.channels or grid["channels"], options.distributions
    )
    cases = [
        Case(op, tokens, channels, states, distribution, dtype)
        for op, tokens, channels, distribution in sizes
        for states in (options.states if op == "selective_scan" else [None])
    ]
    report: dict[str, Any] = {"benchmark": "kernels", "results": [], "environment": describe_environment(device)}
    total = len(PARTS) * sum(case.op in i.ops for case in cases for i in IMPLEMENTATIONS.values())
    print(f"{report['environment']['device']}, torch {torch.__version__}")
    print(HEADER + (BOUNDS_HEADER if device.type == "cuda" else ""))
    code = 0
    try:
        with progress(total) as advance:

            def keep(row: dict[str, Any]) -> None:
                report["results"].append(row)
                write_report(options.output, report)
                advance(render_row(row))

            run(
                cases,
                device,
                runs=options.runs or grid["runs"],
                naive_tokens=options.naive_tokens,
                on_result=keep,
            )
    except KeyboardInterrupt:
        print(f"interrupted after {len(report['results'])} of {total} measurements")
        code = 130
    for line in speedups(report["results"]):
        print(line)
    if report["results"]:
        print(f"results: {options.output}")
    if options.png is not None and any(row["milliseconds"] for row in report["results"]):
        options.png.parent.mkdir(parents=True, exist_ok=True)
        plot(report["results"], options.png, f"{report['environment']['device']}, {options.dtype or grid['dtype']}")
        print(f"picture: {options.png}")
    return code


if __name__ == "__main__":
    sys.exit(main())
