"""Pictures: the style that all of them share, training logs, lengths and padding. Needs matplotlib, which only these
functions import.

Every picture is written as a PNG and an SVG. Colours are Okabe and Ito's, which colour-blind people tell apart
(jfly.uni-koeln.de/color, 2008); lines differ in their markers too.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from packmamba.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from packmamba.data.statistics import PackingReport

COLOURS = ("#0072b2", "#d55e00", "#999999", "#009e73", "#e69f00", "#56b4e9", "#cc79a7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#444444"
"""Marks and guides."""

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.titlesize": 11,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "lines.markersize": 5,
    "savefig.dpi": 150,
    "svg.hashsalt": "packmamba",  # the same picture is the same file
}
_CHARACTERS = 11.5
"""Of a title, for each inch of width."""


def import_pyplot() -> Any:
    """matplotlib.pyplot drawing to files. Raises MissingPackageError naming the extra where it is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingPackageError("pictures need matplotlib: pip install 'packmamba[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def require_picture(file: Path) -> None:
    """Raises MissingPackageError where there is no matplotlib, UsageError for a suffix that it cannot write."""
    figure = import_pyplot().figure()
    accepted = figure.canvas.get_supported_filetypes()
    import_pyplot().close(figure)
    if file.suffix.removeprefix(".").lower() not in accepted:
        raise UsageError(
            f"pictures cannot be written as {file.name!r}; the suffix must be one of {', '.join(accepted)}"
        )


@contextmanager
def picture(
    file: Path, *, size: tuple[float, float], title: str, rows: int = 1, columns: int = 1, **subplots: Any
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields a figure in the common style and its axes, an array (rows, columns); writes `files_of(file)` at the end.

    size: width and height in inches. subplots: further options of `pyplot.subplots`.
    """
    plt = import_pyplot()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **subplots)
        try:
            yield figure, axes
            figure.suptitle("\n".join(wrap(title, int(_CHARACTERS * size[0]), max_lines=2, placeholder=" …")))
            for path in files_of(file):
                # Without the date, the same picture is the same file.
                figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        finally:
            plt.close(figure)


def files_of(file: Path) -> list[Path]:
    """The files that a picture is written to: the one that is named, and an SVG beside a PNG."""
    return [file, file.with_suffix(".svg")] if file.suffix == ".png" else [file]


def read_metric(metrics_csv: Path, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one column of a CSV log, rows without it left out.

    Raises UsageError if the log has no such column, listing what it has.
    """
    with metrics_csv.open(newline="") as file:
        reader = csv.DictReader(file)
        if name not in (reader.fieldnames or ()):
            raise UsageError(f"{metrics_csv} has no column {name!r}; it has: {', '.join(reader.fieldnames or ())}")
        rows = [(int(row["step"]), float(row[name])) for row in reader if row[name]]
    return [step for step, _ in rows], [value for _, value in rows]


def plot_loss(metrics_csv: Path, png: Path, *, title: str) -> None:
    """Training loss and validation loss (nats a token) against optimiser steps."""
    with picture(png, size=(7, 4), title=title) as (_, ((axes,),)):
        axes.plot(*read_metric(metrics_csv, "train/loss"), color=COLOURS[0], linewidth=1.2, label="training")
        axes.plot(*read_metric(metrics_csv, "val/loss"), color=COLOURS[1], marker=MARKERS[0], label="validation")
        axes.set(xlabel="optimiser step", ylabel="loss (nats per token)")
        axes.grid()
        axes.legend()


def plot_packing(
    lengths: np.ndarray, capacity: int, reports: Sequence[PackingReport], png: Path, *, title: str
) -> None:
    """Left: which share of the documents, and of all tokens, has which length. Right: padding by strategy."""
    with picture(png, size=(12, 4.8), title=title, columns=2) as (_, ((left, right),)):
        _draw_lengths(left, lengths, capacity)
        bars = right.barh(
            [report.strategy.replace("_", " ") for report in reports],
            [100 * report.padding for report in reports],
            color=[COLOURS[2 if report.strategy in ("padded", "single") else 0] for report in reports],
        )
        right.bar_label(bars, [f"{report.padding:.2%}" for report in reports], padding=4)
        right.invert_yaxis()
        right.set(xlabel="padding (% of all tokens)", title=f"Padding in packs of {capacity:,} tokens")
        right.set_xlim(0, 1.15 * max(100 * max(report.padding for report in reports), 1))


def _draw_lengths(axes: Any, lengths: np.ndarray, capacity: int) -> None:
    longest = max(int(lengths.max()), 2)
    bins = np.unique(np.round(np.geomspace(int(lengths.min()), longest + 1, 61)))
    share = np.full(lengths.size, 100 / lengths.size)
    axes.hist(lengths, bins=bins, weights=share, color=COLOURS[0], label="of documents")
    tokens = lengths * (100 / lengths.sum())
    axes.hist(lengths, bins=bins, weights=tokens, histtype="step", color=COLOURS[1], linewidth=1.5, label="of tokens")
    axes.set(xscale="log", xlabel="length of a document (tokens)", ylabel="share (%)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    marks = {int(np.percentile(lengths, p, method="inverted_cdf")): f"{p} % up to" for p in (5, 95)}
    for value, label in (marks | {int(np.percentile(lengths, 50, method="inverted_cdf")): "median"}).items():
        axes.axvline(value, color=GREY, linewidth=0.8, linestyle=":")
        where = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axes.annotate(f"{label}\n{value:,}", (value, 1.01), fontsize=8, **where)
    if capacity <= 1.5 * longest:
        axes.axvline(capacity, color=GREY, linewidth=1.2, linestyle="--", label=f"capacity {capacity:,}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
