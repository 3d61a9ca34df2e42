"""How far the operators' outputs and gradients are from fp64, by dtype, step size and length of documents.

    python -m benchmarks accuracy --output benchmarks/results/accuracy.json

Inputs are rounded to the dtype first, and fp64 computes from the same rounded inputs (`exact.py`): what is left is the
operator's own error. Beside it stands what no operator can avoid, the fp64 result rounded to the output's dtype.

On CUDA the Triton kernels are measured; on the CPU the reference path, then the kernels in Triton's interpreter, in a
process of their own. Results are written after each measurement. Needs torch, triton and numpy.

T tokens in a pack · E channels · N states of a channel.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from packmamba_kernels.runtime.triton_glue import INTERPRET
from packmamba_kernels.selective_scan.checks import STATES
from torch import Tensor
from torch.nn import functional as F

from benchmarks.operators import cases as kernel_cases
from benchmarks.operators.cases import OPS, Inputs, naive, ours, outputs_and_gradients
from benchmarks.operators.exact import Results, causal_conv1d_exact, selective_scan_exact
from packmamba.compare.report import positive, write_report
from packmamba.environment import describe_environment
from packmamba.packing import Packing

Row = dict[str, Any]

IMPLEMENTATIONS = {
    "definition": "naive.py, on the CPU, in fp32, short documents only",
    "reference": "the CPU path",
    "interpreter": "the Triton kernels in Triton's interpreter, on the CPU",
    "cuda": "the Triton kernels on a GPU",
}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SHORT = (1, 3, 64, 65, 130, 37)
"""Tokens of the short documents, which share a pack."""

LONGEST = {"reference": 65_536, "cuda": 65_536, "interpreter": 1024}
"""Tokens of the long document; the interpreter needs 20 ms for each."""


@dataclass(frozen=True)
class Steps:
    bias: float
    """Mean of delta_bias; Δ = softplus(delta + delta_bias), and either varies by 1 about its mean."""
    rates: float = 1.0
    """What A, -1 to -3 mostly, is multiplied by."""


STEPS = {"small": Steps(-4), "middle": Steps(-1), "huge": Steps(2), "vanishing": Steps(2, 10.0)}
"""By name: how far a state decays within a token. With the last, nearly everything."""


@dataclass(frozen=True)
class Case(kernel_cases.Case):
    """distribution: `short`, the documents SHORT, or `giant`, one that is the whole pack."""

    steps: str | None
    """One of STEPS; None for the convolution."""

    def packing(self) -> Packing:
        return Packing.from_lengths(SHORT if self.distribution == "short" else [self.tokens])


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """Those of the kernel benchmark with the case's step sizes; the same on every device."""
    inputs = kernel_cases.make_inputs(case, torch.device("cpu"), seed=0)
    if case.steps is not None:
        steps = STEPS[case.steps]
        inputs["delta_bias"] = inputs["delta_bias"] + (4 + steps.bias)
        inputs["A"] = inputs["A"] * steps.rates
    return {name: value.detach().to(device).requires_grad_() for name, value in inputs.items()}


def measure(implementation: str, case: Case) -> Row:
    """The report's row: the case, its median Δ and Δ|A| (null for the convolution), and by output and gradient the
    errors `rms` and `max`, of the implementation and of `rounding` alone. Runs in this process."""
    packing = case.packing()
    device = torch.device("cuda" if implementation == "cuda" else "cpu")
    inputs = make_inputs(case, device)
    dout = torch.randn(case.tokens, case.channels, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    build = naive if implementation == "definition" else ours
    actual = outputs_and_gradients(build(case, packing.to(device)), inputs, dout.to(device))
    on_host = {name: value.detach().cpu() for name, value in inputs.items()}
    exact = selective_scan_exact if case.op == "selective_scan" else causal_conv1d_exact
    expected = exact(on_host, dout, packing.host_cu_seqlens)
    return describe(implementation, case) | {
        **_medians(case, on_host),
        "errors": errors(expected, actual),
        "rounding": errors(expected, {name: value.to(actual[name].dtype) for name, value in expected.items()}),
    }


def describe(implementation: str, case: Case) -> Row:
    dtype = next(name for name, dtype in DTYPES.items() if dtype == case.dtype)
    return {"implementation": implementation} | asdict(case) | {"dtype": dtype}


def _medians(case: Case, inputs: Mapping[str, Tensor]) -> Row:
    if case.steps is None:
        return {"median_step": None, "median_exponent": None}
    step = F.softplus(inputs["delta"].float() + inputs["delta_bias"])[:4096]
    exponent = step[..., None] * inputs["A"].abs()
    return {"median_step": _four_digits(step.median()), "median_exponent": _four_digits(exponent.median())}


def errors(expected: Results, actual: Mapping[str, Tensor]) -> dict[str, dict[str, float | None]]:
    """By name: `rms` = ‖x - expected‖ / ‖expected‖, `max` = the largest |x - expected| over the RMS of expected; None
    where x holds a NaN or an infinity."""
    result = {}
    for name, reference in expected.items():
        value = actual[name].detach().cpu().double()
        scale = reference.square().mean().sqrt()
        error = (value - reference) / scale
        finite = bool(value.isfinite().all())
        result[name] = {
            "rms": _four_digits(error.square().mean().sqrt()) if finite else None,
            "max": _four_digits(error.abs().max()) if finite else None,
        }
    return result


def _four_digits(x: Tensor) -> float:
    return float(f"{float(x):.3e}")


def run(implementation: str, cases: Sequence[Case]) -> Iterator[Row]:
    """Rows as they come. Those of the interpreter are from a process where triton is imported with TRITON_INTERPRET=1.

    Raises RuntimeError if that process fails; what it says stands on stderr.
    """
    if implementation != "interpreter":
        yield from (measure(implementation, case) for case in cases)
        return
    command = [sys.executable, "-m", "benchmarks.operators.accuracy", "--measure"]
    command.append(json.dumps([describe(implementation, case) for case in cases]))
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise RuntimeError(f"the kernels' process in the interpreter exited with {process.returncode}")


def _measure_here(described: str) -> None:
    """What the interpreter's process does: a line of JSON for each case."""
    for row in json.loads(described):
        implementation = row.pop("implementation")
        case = Case(**row | {"dtype": DTYPES[row["dtype"]]})
        print(json.dumps(measure(implementation, case)), flush=True)


def cases_of(implementation: str, options: argparse.Namespace) -> list[Case]:
    """What is measured of an implementation: each operator in each dtype, the scan with each step size, on the short
    documents and on the long one."""
    documents = {"short": sum(SHORT)}
    if implementation in LONGEST:
        documents["giant"] = options.tokens or LONGEST[implementation]
    dtypes = ["fp32"] if implementation == "definition" else options.dtypes
    return [
        Case(op, tokens, options.channels, states, name, DTYPES[dtype], steps)
        for op, dtype in itertools.product(options.ops, dtypes)
        for steps, states in ([(s, options.states) for s in options.steps] if op == "selective_scan" else [(None,) * 2])
        for name, tokens in documents.items()
    ]


# --- tables ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "out": ("out",),
    "du, dz, dx": ("du", "dz", "dx"),
    "ddelta": ("ddelta",),
    "dA": ("dA",),
    "dB": ("dB",),
    "dC": ("dC",),
    "other parameters": ("dD", "ddelta_bias", "dweight", "dbias"),
}
"""The table's columns: in each, the outputs and gradients whose worst error it shows."""


def worst(found: Iterable[float | None]) -> float | None:
    """The largest, None (not finite) above all."""
    values = list(found)
    return None if None in values else max(value for value in values if value is not None)


def short(error: float | None) -> str:
    """
    >>> short(0.0000312)
    '3e-5'
    """
    if error is None:
        return "not finite"
    mantissa, exponent = f"{error:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def table(report: Row) -> list[list[str]]:
    """Header and rows for the README: the worst of all implementations, short documents before a dot, long ones behind;
    then the definition, and rounding alone."""
    rows = report["results"]
    lines = [["", "dtype", "Δ", "Δ·\\|A\\|", *COLUMNS, "largest"]]
    measured = [row for row in rows if row["implementation"] != "definition"]
    for op, dtype, steps in dict.fromkeys((row["op"], row["dtype"], row["steps"]) for row in measured):
        mine = [row for row in measured if (row["op"], row["dtype"], row["steps"]) == (op, dtype, steps)]
        lines.append([f"`{op}`", dtype, *_decay(mine), *_cells(mine, "errors")])
    if len(measured) < len(rows):
        definition = [row for row in rows if row["implementation"] == "definition"]
        lines.append(["definition", "fp32", "", "", *_cells(definition, "errors")])
    for dtype in dict.fromkeys(row["dtype"] for row in measured):
        mine = [row for row in measured if row["dtype"] == dtype]
        lines.append(["rounding alone", dtype, "", "", *_cells(mine, "rounding")])
    return lines


def _decay(rows: Sequence[Row]) -> list[str]:
    return ["" if rows[0]["steps"] is None else f"{rows[0][key]:.2g}" for key in ("median_step", "median_exponent")]


def _cells(rows: Sequence[Row], key: str) -> list[str]:
    by_documents = [[row for row in rows if row["distribution"] == name] for name in ("short", "giant")]
    if key == "rounding":
        by_documents = [list(rows)]

    def cell(names: Iterable[str], kind: str) -> str:
        parts = []
        for group in filter(None, by_documents):
            found = [row[key][name][kind] for row in group for name in names if name in row[key]]
            if found:
                parts.append(short(worst(found)))
        return " · ".join(parts)

    every = [name for names in COLUMNS.values() for name in names]
    return [*(cell(names, "rms") for names in COLUMNS.values()), cell(every, "max")]


NAMES = {
    "causal_conv1d": ("out", "dx", "dweight", "dbias"),
    "selective_scan": ("out", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias"),
}
"""Columns of what is printed."""

KINDS = {"rms": ("errors", "rms"), "largest": ("errors", "max"), "rounding": ("rounding", "rms")}
"""Lines of a case in what is printed: where a row of the report holds them."""


def render_row(row: Row) -> str:
    """The case, and below it the errors by name: RMS over RMS, the largest over RMS, and rounding alone."""
    decay = "" if row["steps"] is None else f", Δ {row['median_step']:.2g}, Δ|A| {row['median_exponent']:.2g}"
    documents = f"{len(SHORT)} short documents" if row["distribution"] == "short" else "one document"
    lines = [f"{row['op']}, {row['implementation']}, {row['dtype']}, {row['tokens']:,} tokens, {documents}{decay}"]
    lines.append(f"{'':<10}" + "".join(f"{name:>12}" for name in NAMES[row["op"]]))
    for title, (key, kind) in KINDS.items():
        lines.append(f"{title:>10}" + "".join(f"{short(row[key][name][kind]):>12}" for name in NAMES[row["op"]]))
    return "\n".join(lines)


# --- command line ---------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks accuracy",
        description="Errors of the operators' outputs and gradients against fp64 from the same rounded inputs.",
        epilog="implementations: " + "; ".join(f"{name}: {meaning}" for name, meaning in IMPLEMENTATIONS.items()),
    )
    parser.add_argument(
        "--implementations", nargs="+", choices=list(IMPLEMENTATIONS),
        help="default: definition and cuda where there is a GPU, else definition, reference and interpreter",
    )  # fmt: skip
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), help="operators (default: all)")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="default: all")
    parser.add_argument(
        "--steps", nargs="+", choices=list(STEPS), default=list(STEPS), help="step sizes of the scan (default: all)"
    )
    parser.add_argument(
        "--tokens", type=positive,
        help=f"T of the long document (default: {LONGEST['cuda']:,}, in the interpreter {LONGEST['interpreter']:,})",
    )  # fmt: skip
    parser.add_argument("--channels", type=positive, default=64, help="E (default: %(default)s)")
    parser.add_argument("--states", type=int, choices=STATES, default=16, help="N, of the scan (default: 16)")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy.json"), help="JSON (default: %(default)s)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 130 where it was interrupted. Wrong options leave through argparse with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.measure is not None:
        _measure_here(options.measure)
        return 0
    if INTERPRET:
        parser.error(
            "TRITON_INTERPRET=1 is set, with which every operator runs its kernels: unset it; "
            "--implementations interpreter sets it in a process of its own"
        )
    has_gpu = torch.cuda.is_available()
    devices = ["cuda"] if has_gpu else ["reference", "interpreter"]
    implementations = options.implementations or ["definition", *devices]
    if "cuda" in implementations and not has_gpu:
        parser.error("--implementations cuda: torch finds no CUDA device here; use reference or interpreter")
    if options.tokens == 1:
        parser.error("--tokens must be at least 2, got 1: the gradient of A is zero for one token")
    environment = describe_environment("cuda" if "cuda" in implementations else "cpu")
    report: dict[str, Any] = {"benchmark": "accuracy", "results": [], "environment": environment}
    code = 0
    try:
        for implementation in implementations:
            for row in run(implementation, cases_of(implementation, options)):
                report["results"].append(row)
                write_report(options.output, report)
                print(render_row(row), flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {len(report['results'])} measurements")
        code = 130
    if report["results"]:
        print(f"results: {options.output}")
    return code


if __name__ == "__main__":
    sys.exit(main())
