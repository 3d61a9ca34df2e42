"""The pictures of `python -m benchmarks kernels` and `python -m benchmarks scaling`. Needs
matplotlib, which only these functions import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.operators.tables import SHORT_DTYPES, nanoseconds
from packmamba.plots import COLOURS, import_pyplot


def plot_times(rows: Sequence[dict[str, Any]], png: Path, title: str) -> None:
    """Medians as bars: a panel for each operator and part, a group for each size and distribution; a black line is the
    bound by bytes."""

    def group(row: dict[str, Any]) -> str:
        states = "" if row["states"] is None else f" x {row['states']}"
        return f"{row['tokens']:,} x {row['channels']:,}{states}\n{SHORT_DTYPES[row['dtype']]} {row['distribution']}"

    plt = import_pyplot()
    timed = [row for row in rows if row["milliseconds"]]
    panels = list(dict.fromkeys((row["op"], row["part"]) for row in timed))
    width = max(9, 1.1 * len({group(row) for row in timed}))
    figure, grid = plt.subplots(
        len(panels), 1, figsize=(width, 3 * len(panels)), squeeze=False, constrained_layout=True
    )
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


def plot_scaling(rows: Sequence[dict[str, Any]], png: Path, title: str) -> None:
    """Nanoseconds a token against tokens a pack: a panel for each operator and part, a line for each distribution."""
    plt = import_pyplot()
    timed = [row for row in rows if row["milliseconds"]]
    panels = list(dict.fromkeys((row["op"], row["part"]) for row in timed))
    distributions = list(dict.fromkeys(row["distribution"] for row in timed))
    ticks = sorted({row["tokens"] for row in timed})
    columns = min(2, len(panels))
    shape = -(-len(panels) // columns), columns
    figure, grid = plt.subplots(
        *shape, figsize=(5 * columns, 3.2 * shape[0]), squeeze=False, constrained_layout=True, sharex=True
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (op, part) in zip(grid.flat, panels, strict=False):
        for i, distribution in enumerate(distributions):
            mine = [row for row in timed if (row["op"], row["part"], row["distribution"]) == (op, part, distribution)]
            mine.sort(key=lambda row: row["tokens"])
            x, y = [row["tokens"] for row in mine], [nanoseconds(row) for row in mine]
            axes.plot(x, y, marker="o", label=distribution, color=COLOURS[i % len(COLOURS)])
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set(title=f"{op}, {part}", xlabel="tokens of a pack", ylabel="ns a token")
        axes.tick_params(labelbottom=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(png, dpi=150)
    plt.close(figure)
