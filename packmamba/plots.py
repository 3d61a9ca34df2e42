"""Pictures of a training log, and of lengths and padding. Needs matplotlib, which only these functions import."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from packmamba.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from packmamba.data.statistics import PackingReport

COLOURS = ("#2a6f97", "#e07a5f", "#8d99ae", "#81b29a", "#f2cc8f")


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
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    axes.plot(*read_metric(metrics_csv, "train/loss"), color=COLOURS[0], linewidth=1.2, label="training")
    axes.plot(*read_metric(metrics_csv, "val/loss"), color=COLOURS[1], marker="o", label="validation")
    axes.set(xlabel="optimiser step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(png, dpi=150)
    plt.close(figure)


def plot_packing(
    lengths: np.ndarray, capacity: int, reports: Sequence[PackingReport], png: Path, *, title: str
) -> None:
    """Left: which share of the documents, and of all tokens, has which length. Right: padding by strategy."""
    plt = import_pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), constrained_layout=True)
    longest = max(int(lengths.max()), 2)
    bins = np.unique(np.round(np.geomspace(int(lengths.min()), longest + 1, 61)))
    share = np.full(lengths.size, 100 / lengths.size)
    left.hist(lengths, bins=bins, weights=share, color=COLOURS[0], label="of documents")
    tokens = lengths * (100 / lengths.sum())
    left.hist(lengths, bins=bins, weights=tokens, histtype="step", color=COLOURS[1], linewidth=1.5, label="of tokens")
    left.set(xscale="log", xlabel="tokens of a document", ylabel="share (%)")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    marks = {int(np.percentile(lengths, p, method="inverted_cdf")): f"{p} % up to" for p in (5, 95)}
    for value, label in (marks | {int(np.percentile(lengths, 50, method="inverted_cdf")): "median"}).items():
        left.axvline(value, color="#444444", linewidth=0.8, linestyle=":")
        where = {"xycoords": left.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        left.annotate(f"{label}\n{value:,}", (value, 1.01), fontsize=8, **where)
    if capacity <= 1.5 * longest:
        left.axvline(capacity, color="#444444", linewidth=1.2, linestyle="--", label=f"capacity {capacity:,}")
    left.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    bars = right.barh(
        [report.strategy for report in reports],
        [100 * report.padding for report in reports],
        color=[COLOURS[2 if report.strategy in ("padded", "single") else 0] for report in reports],
    )
    right.bar_label(bars, [f"{report.padding:.2%}" for report in reports], padding=4)
    right.invert_yaxis()
    right.set(xlabel="padding (%)", title=f"Padding in packs of {capacity:,} tokens")
    right.set_xlim(0, 1.15 * max(100 * max(report.padding for report in reports), 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title if len(title) <= 110 else f"{title[:109]}…")
    figure.savefig(png, dpi=150)
    plt.close(figure)
