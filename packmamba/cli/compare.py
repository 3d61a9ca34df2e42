"""Packed against padded against one document at a time: full training steps on the same documents, timed.

    packmamba compare                                          # a tiny hybrid, on this machine
    packmamba compare --models mamba-1.4b --capacity 16384 65536 --modes packed padded padded_sorted single

Real tokens only. All modes have to find the same loss on the untrained model before any of them is timed. Every list is
swept; results are written after each pass, so an interrupted run keeps what it has. Needs torch, triton and numpy only
(pictures need matplotlib).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch

from packmamba.cli.parser_errors import PlainParser
from packmamba.compare.modes import PACKING_STRATEGIES
from packmamba.compare.report import add_device, chosen_device, positive
from packmamba.compare.sweep import Sweep, SweepOptions
from packmamba.compare.tables import ESSENTIAL, as_text, breakdown_table, markdown, table
from packmamba.compare.throughput import Precision
from packmamba.config import Recompute
from packmamba.data.lengths import DISTRIBUTIONS
from packmamba.errors import MissingPackageError, usage_of
from packmamba.plots import files_of

DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "models": ["mamba-130m"],
        "capacity": [16_384],
        "batch_sizes": [4, 8, 16],
        "tokens": 65_536,
        "precision": "bf16-mixed",
    },
    "cpu": {
        "models": ["hybrid-tiny"],
        "capacity": [4096],
        "batch_sizes": [4, 8],
        "tokens": 16_384,
        "precision": "32-true",
    },
}
"""Options that are not given, by the type of the device."""

DEFAULT_MODES = ("packed", "padded", "padded_sorted", "single", "mamba-ssm/padded:8", "mamba-ssm/dense:4096")


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with the name of each pass that is done: it moves a bar on, or prints a line without
    rich or without a terminal."""
    done = itertools.count(1)
    if importlib.util.find_spec("rich") is None or not sys.stderr.isatty():
        yield lambda text: print(f"{next(done)}/{total} {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


def _parser() -> argparse.ArgumentParser:
    parser = PlainParser(
        prog="packmamba compare",
        description="Trains on the same documents packed, padded and one at a time, and times it. Lists are swept.",
        epilog=(
            f"modes: packed[:STRATEGY|:all], padded[:ROWS], padded_sorted[:ROWS], single, mamba-ssm/MODE, "
            f"mamba-ssm/dense:TOKENS; strategies: {', '.join(PACKING_STRATEGIES)}; lengths: "
            + "; ".join(f"{name}: {meaning}" for name, meaning in DISTRIBUTIONS.items())
        ),
    )

    def default(key: str) -> str:
        return f"(default: {_text(DEFAULTS['cuda'][key])} on CUDA, {_text(DEFAULTS['cpu'][key])} on the CPU)"

    parser.add_argument("--models", nargs="+", help=f"presets, configurations, or JSON files {default('models')}")
    parser.add_argument("--layer-patterns", nargs="+", help="layer patterns that replace the models' own, quoted")
    parser.add_argument("--recompute", nargs="+", choices=get_args(Recompute), help="what the backward computes again")
    parser.add_argument(
        "--modes", nargs="+", default=list(DEFAULT_MODES), help=f"ways to train (default: {' '.join(DEFAULT_MODES)})"
    )
    parser.add_argument("--capacity", nargs="+", type=positive, help=f"tokens of a pack {default('capacity')}")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=positive, help=f"rows of a padded batch {default('batch_sizes')}"
    )
    parser.add_argument(
        "--lengths", nargs="+", default=["lognormal"],
        help="distributions, histograms (.json, .csv), arrays of lengths (.npy), or training configurations (.yaml, or "
        "the name of a shipped one), whose documents are loaded (default: lognormal)",
    )  # fmt: skip
    parser.add_argument("--mean-length", nargs="+", type=positive, help="stretch the lengths to these means, in tokens")
    parser.add_argument("--tokens", type=positive, help=f"real tokens of a pass, about {default('tokens')}")
    parser.add_argument("--precision", choices=get_args(Precision), help=default("precision"))
    parser.add_argument("--repeats", type=positive, default=3, help="timed passes of each mode (default: 3)")
    add_device(parser)
    parser.add_argument("--profile", action="store_true", help="time and memory of a packed step by kind of layer too")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a Chrome trace of a packed step too")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/compare"), help="folder of results (default: %(default)s)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing")
    return parser


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 130 where it was interrupted. Raises UsageError for options that cannot be used, before anything is
    timed; those that argparse refuses leave through it with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    device = chosen_device(parser, options)
    if not options.no_pictures and importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError("pictures need matplotlib: pip install 'packmamba[plots]', or use --no-pictures")
    for key, value in DEFAULTS[device.type].items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    sweep = Sweep(SweepOptions(**{field.name: getattr(options, field.name) for field in fields(SweepOptions)}), device)
    sweep.write()  # before anything takes long: the folder may be one that cannot be written to
    environment = sweep.report["environment"]
    print(f"{environment['device']}, torch {torch.__version__}, {options.precision}")
    code = 0
    try:
        with progress(sweep.num_passes) as advance:
            sweep.run(advance)
    except KeyboardInterrupt:
        print("interrupted; what was measured so far:")
        code = 130
    sweep.write()
    _finish(sweep, options)
    return code


def _finish(sweep: Sweep, options: argparse.Namespace) -> None:
    rows, shares = sweep.report["results"], sweep.report["breakdown"]
    tables = [*([table(rows)] if rows else []), *([breakdown_table(shares)] if shares else [])]
    text = "\n\n".join(map(markdown, tables)) or "nothing was measured"
    width = shutil.get_terminal_size().columns  # 80 where there is no terminal
    print("\n\n".join(as_text(lines, width, ESSENTIAL) for lines in tables) or text)
    with usage_of("--output"):
        (options.output / "compare.md").write_text(text + "\n")
    written = [options.output / "compare.json", options.output / "compare.md"]
    if not options.no_pictures:
        from packmamba.compare.plots import draw_all

        for drawn in draw_all(rows, shares, options.output, sweep.report["environment"]["device"]):
            written += files_of(drawn)
    print("Real tokens only; every mode found the same loss on the untrained model before\nit was timed.")
    for path in written:
        print(path)


if __name__ == "__main__":
    sys.exit(main())
