"""Results of a benchmark as they come: to the report's file and to the terminal."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packmamba.compare.report import write_report
from packmamba.plots import files_of


def require_matplotlib(parser: argparse.ArgumentParser) -> None:
    """Leaves through argparse where `--png` cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("--png needs matplotlib: pip install 'packmamba[plots]'")


def draw(plot: Callable[..., None], rows: Sequence[dict[str, Any]], png: Path | None, title: str) -> None:
    """plot(rows, png, title), and a line that says so; nothing without `--png`, or where nothing was timed."""
    if png is None or not any(row["milliseconds"] for row in rows):
        return
    png.parent.mkdir(parents=True, exist_ok=True)
    plot(rows, png, title)
    print(f"picture: {', '.join(map(str, files_of(png)))}")


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
