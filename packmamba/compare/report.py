"""What every benchmark's command line needs: options of one kind, lines as results come, results to a file."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def positive(text: str) -> int:
    """The `type` of an option that counts something, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`, which `chosen_device` reads."""
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one")


def chosen_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """Leaves through argparse where a GPU is asked for that is not there."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def require_matplotlib(parser: argparse.ArgumentParser) -> None:
    """Leaves through argparse where `--png` cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("--png needs matplotlib: pip install 'packmamba[plots]'")


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes JSON, in a new folder if need be, in one step, so that an interrupt leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(path)


def collect(
    run: Callable[[Callable[[dict[str, Any]], None]], None],
    report: dict[str, Any],
    output: Path,
    total: int,
    render: Callable[[dict[str, Any]], str],
) -> int:
    """The exit code of `run`, which is handed what to call with each result: it goes into report["results"], the whole
    report to `output`, and its line to the terminal. An interrupt keeps what is there and returns 130."""
    rows = report["results"]
    try:
        with progress(total) as advance:

            def keep(row: dict[str, Any]) -> None:
                rows.append(row)
                write_report(output, report)
                advance(render(row))

            run(keep)
    except KeyboardInterrupt:
        print(f"interrupted after {len(rows)} of {total} measurements")
        return 130
    return 0


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
