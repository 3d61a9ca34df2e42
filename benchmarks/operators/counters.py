"""Hardware counters of the kernels, read by NVIDIA's `ncu` (Nsight Compute): one forward and backward of each operator.

    python -m benchmarks counters --output benchmarks/results/counters.json

`ncu` runs each kernel several times, at the clocks that the GPU runs at anyway, and needs the permission to read
counters. Written after its documentation; it has not run against a real `ncu` yet.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.operators.cases import DTYPES, OPS, Case, make_inputs, ours
from packmamba.compare.report import positive, write_report
from packmamba.data.lengths import DISTRIBUTIONS
from packmamba.environment import describe_environment

STALLS = (
    "barrier",
    "branch_resolving",
    "dispatch_stall",
    "drain",
    "imc_miss",
    "lg_throttle",
    "long_scoreboard",
    "math_pipe_throttle",
    "membar",
    "mio_throttle",
    "no_instruction",
    "not_selected",
    "selected",
    "short_scoreboard",
    "sleeping",
    "tex_throttle",
    "wait",
)
"""What a resident warp does in a cycle. `selected` issues an instruction; all others wait."""

_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"

DURATION = "gpu__time_duration.sum"
ISSUE = "smsp__issue_active.avg.pct_of_peak_sustained_active"
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
SPECIAL = "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active"
DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
DRAM_BYTES = ("dram__bytes_read.sum", "dram__bytes_write.sum")

METRICS = (
    DURATION,
    ISSUE,
    OCCUPANCY,
    SPECIAL,
    DRAM,
    *DRAM_BYTES,
    "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "launch__registers_per_thread",
    *(_STALL.format(reason) for reason in STALLS),
)
"""Time, issue slots in use, warps resident, the pipe of exponentials (XU), memory, loads and shared memory, registers,
and warps of each kind for each issued instruction."""


def parse(output: str) -> list[dict[str, Any]]:
    """A row for each launched kernel, in order: `id`, `kernel`, `grid`, `block`, `metrics` by name and their `units`.

    output: what `ncu --csv` prints, a metric a line below the header, among lines of its own and of the program's. A
    metric that could not be read is null.

    Raises ValueError where there is no header, or no kernel below it.
    """
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID","Process ID"')), None)
    if start is None:
        raise ValueError("ncu printed no table of metrics")
    table = [line for line in lines[start:] if line.startswith('"')]
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(table))):
        kernel = kernels.setdefault(
            row["ID"],
            {
                "id": int(row["ID"]),
                "kernel": row["Kernel Name"],
                "grid": row["Grid Size"],
                "block": row["Block Size"],
                "metrics": {},
                "units": {},
            },
        )
        kernel["metrics"][row["Metric Name"]] = _number(row["Metric Value"])
        kernel["units"][row["Metric Name"]] = row["Metric Unit"]
    if not kernels:
        raise ValueError("ncu measured no kernel")
    return list(kernels.values())


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", ""))
    except ValueError:  # "n/a", or nothing
        return None
    return value if value == value else None


def top_stall(metrics: dict[str, float | None]) -> str | None:
    """Why most warps wait, besides for their turn; None where no reason was measured."""
    waits = {
        reason: value
        for reason in STALLS
        if reason not in ("selected", "not_selected") and (value := metrics.get(_STALL.format(reason))) is not None
    }
    return max(waits, key=lambda reason: waits[reason], default=None)


HEADER = (
    f"{'kernel':<30} {'ms':>8} {'issue %':>8} {'warps %':>8} {'XU %':>8} {'DRAM %':>8} {'GB':>8} "
    f"{'registers':>9}  waits for"
)


def render_row(row: dict[str, Any]) -> str:
    """One line of the table; `HEADER` is its first."""
    metrics = row["metrics"]

    def number(name: str, scale: float = 1.0, digits: int = 1) -> str:
        value = metrics.get(name)
        return "?" if value is None else f"{scale * value:.{digits}f}"

    moved = [metrics.get(name) for name in DRAM_BYTES]
    gigabytes = "?" if None in moved else f"{sum(moved) / 1e9:.3f}"
    return (
        f"{row['kernel'][:30]:<30} {number(DURATION, 1e-6, 3):>8} {number(ISSUE):>8} {number(OCCUPANCY):>8} "
        f"{number(SPECIAL):>8} {number(DRAM):>8} {gigabytes:>8} {number('launch__registers_per_thread', 1, 0):>9}  "
        f"{(top_stall(metrics) or '?').replace('_', ' ')}"
    )


def profile(ncu: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What `ncu` counts in `run_once` with these arguments, in a process of its own. Raises RuntimeError with its
    output where it fails."""
    command = [
        ncu,
        *("--clock-control", "none"),
        *("--profile-from-start", "off"),  # run_once says when
        *("--print-units", "base"),  # ns and bytes, not whatever is short
        "--csv",
        *("--metrics", ",".join(METRICS)),
        *(sys.executable, "-m", "benchmarks.operators.counters", "--profiled", *arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode != 0:
        raise RuntimeError(f"ncu failed with exit code {done.returncode}:\n{output}")
    try:
        return parse(done.stdout)
    except ValueError as error:
        raise RuntimeError(f"{error}:\n{output}") from error


def run_once(cases: Sequence[Case]) -> None:
    """Forward and backward of each case on CUDA, after one that compiles the kernels and that a profiler leaves out."""
    device = torch.device("cuda")
    for case in cases:
        call, inputs = ours(case, case.packing().to(device)), make_inputs(case, device, seed=0)
        dout = torch.randn(case.tokens, case.channels, device=device).to(case.dtype)
        torch.autograd.grad(call(inputs), list(inputs.values()), dout)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        torch.autograd.grad(call(inputs), list(inputs.values()), dout)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks counters",
        description="Reads hardware counters of packmamba's kernels with NVIDIA's ncu, forward and backward.",
    )
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), help="operators (default: all)")
    parser.add_argument("--tokens", type=positive, default=65_536, help="T, tokens of a pack (default: %(default)s)")
    parser.add_argument("--channels", type=positive, default=4096, help="E (default: %(default)s)")
    parser.add_argument("--states", type=positive, default=16, help="N, of the scan (default: %(default)s)")
    parser.add_argument("--distribution", choices=list(DISTRIBUTIONS), default="lognormal", help="document lengths")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/counters.json"), help="JSON (default: %(default)s)")
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where ncu or a GPU is missing or ncu fails, which stderr says. Wrong options leave through
    argparse with 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    cases = [
        Case(
            op,
            options.tokens,
            options.channels,
            options.states if op == "selective_scan" else None,
            options.distribution,
            DTYPES[options.dtype],
        )
        for op in options.ops
    ]
    if options.profiled:
        run_once(cases)
        return 0
    ncu = shutil.which("ncu")
    if ncu is None:
        return _fail("ncu is not on PATH; it comes with NVIDIA's Nsight Compute, in the CUDA toolkit's bin folder")
    if not torch.cuda.is_available():
        return _fail("torch finds no CUDA device here, and counters are those of a GPU")
    try:
        rows = profile(ncu, arguments)
    except RuntimeError as error:
        return _fail(str(error))
    report = {
        "benchmark": "counters",
        **{name: getattr(options, name) for name in ("tokens", "channels", "states", "distribution", "dtype")},
        "results": rows,
        "environment": describe_environment("cuda"),
    }
    write_report(options.output, report)
    print(HEADER)
    for row in rows:
        print(render_row(row))
    print(f"results: {options.output}")
    return 0


def _fail(message: str) -> int:
    print(f"python -m benchmarks counters: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
