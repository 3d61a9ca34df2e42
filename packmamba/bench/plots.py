"""The pictures: loss curves and throughput bars. Needs matplotlib, which only these functions import."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packmamba.bench.throughput import ModeResult

COLOURS = ("#2a6f97", "#e07a5f", "#8d99ae", "#81b29a", "#f2cc8f")


def import_pyplot() -> Any:
    """matplotlib.pyplot drawing to files. Raises ModuleNotFoundError naming the extra where it is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'packmamba[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def read_metric(metrics_csv: Path, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one column of a CSV log, rows without it left out.

    Raises ValueError if the log has no such column, listing what it has.
    """
    with metrics_csv.open(newline="") as file:
        reader = csv.DictReader(file)
        if name not in (reader.fieldnames or ()):
            raise ValueError(f"{metrics_csv} has no column {name!r}; it has: {', '.join(reader.fieldnames or ())}")
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


def plot_throughput(results: Sequence[ModeResult], png: Path, *, title: str) -> None:
    """Real tokens a second for each mode: the bar is the median, the whisker runs from the slowest to the fastest."""
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    medians = [result.tokens_per_second for result in results]
    whiskers = [
        [median - result.slowest for median, result in zip(medians, results, strict=True)],
        [result.fastest - median for median, result in zip(medians, results, strict=True)],
    ]
    names = [f"{result.mode}\n{result.padding_fraction:.0%} padding" for result in results]
    bars = axes.bar(names, medians, yerr=whiskers, capsize=5, color=COLOURS[: len(results)], width=0.6)
    axes.bar_label(bars, [f"{median:,.0f}" for median in medians], padding=4)
    axes.set(ylabel="real tokens per second", title=title)
    axes.set_ylim(0, 1.15 * max(result.fastest for result in results))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=150)
    plt.close(figure)
