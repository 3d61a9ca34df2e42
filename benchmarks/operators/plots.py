"""The pictures of `python -m benchmarks kernels` and `python -m benchmarks scaling`. Needs
matplotlib, which only these functions import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.operators.tables import SHORT_DTYPES, nanoseconds
from packmamba.plots import COLOURS, MARKERS, picture


def plot_times(rows: Sequence[dict[str, Any]], png: Path, title: str) -> None:
    """Medians as bars: a panel for each operator and part, a group for each size and distribution; a black line is the
    bound by bytes."""

    def group(row: dict[str, Any]) -> str:
        states = "" if row["states"] is None else f" × {row['states']}"
        return f"{row['tokens']:,} × {row['channels']:,}{states}\n{SHORT_DTYPES[row['dtype']]} {row['distribution']}"

    timed = [row for row in rows if row["milliseconds"]]
    panels = list(dict.fromkeys((row["op"], row["part"]) for row in timed))
    names = list(dict.fromkeys(row["implementation"] for row in timed))
    size = max(9, 1.1 * len({group(row) for row in timed})), 0.6 + 2.8 * len(panels)
    labelled: dict[str, Any] = {}
    with picture(png, size=size, title=title, rows=len(panels)) as (figure, grid):
        for axes, (op, part) in zip(grid[:, 0], panels, strict=True):
            shown = [row for row in timed if (row["op"], row["part"]) == (op, part)]
            groups = list(dict.fromkeys(group(row) for row in shown))
            here = [name for name in names if any(row["implementation"] == name for row in shown)]
            for i, name in enumerate(here):
                mine = [row for row in shown if row["implementation"] == name]
                at = [groups.index(group(row)) + 0.8 * ((i + 0.5) / len(here) - 0.5) for row in mine]
                medians = [row["milliseconds"]["median"] for row in mine]
                colour = COLOURS[names.index(name) % len(COLOURS)]
                labelled[name] = bars = axes.bar(at, medians, 0.75 / len(here), color=colour)
                axes.bar_label(bars, [f"{median:.3g}" for median in medians], fontsize=7)
            for row in shown:
                floor = (row["bounds_milliseconds"] or {}).get("bytes")
                if floor is not None:
                    at = groups.index(group(row))
                    labelled["bound by bytes"] = axes.hlines(floor, at - 0.4, at + 0.4, color="black", linewidth=1)
            axes.set_xticks(range(len(groups)), groups, fontsize=7)
            axes.set(title=f"{_words(op)}, {part}", ylabel="time (ms)")
        grid[-1, 0].set(xlabel="tokens × channels (× states), dtype and documents' lengths")
        figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=min(len(labelled), 5))


def plot_scaling(rows: Sequence[dict[str, Any]], png: Path, title: str) -> None:
    """Nanoseconds a token against tokens a pack: a panel for each operator and part, a line for each distribution."""
    timed = [row for row in rows if row["milliseconds"]]
    panels = list(dict.fromkeys((row["op"], row["part"]) for row in timed))
    distributions = list(dict.fromkeys(row["distribution"] for row in timed))
    ticks = sorted({row["tokens"] for row in timed})
    columns = min(2, len(panels))
    shape = {"rows": -(-len(panels) // columns), "columns": columns}
    size = 5 * columns, 0.8 + 3 * shape["rows"]
    with picture(png, size=size, title=title, **shape, sharex=True) as (figure, grid):
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (op, part) in zip(grid.flat, panels, strict=False):
            for i, distribution in enumerate(distributions):
                key = op, part, distribution
                mine = [row for row in timed if (row["op"], row["part"], row["distribution"]) == key]
                mine.sort(key=lambda row: row["tokens"])
                x, y = [row["tokens"] for row in mine], [nanoseconds(row) for row in mine]
                style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
                axes.plot(x, y, label=distribution, **style)
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
            axes.minorticks_off()
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.set(title=f"{_words(op)}, {part}", xlabel="tokens of a pack", ylabel="time for each token (ns)")
            axes.tick_params(labelbottom=True)
            axes.grid()
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(distributions))


def _words(op: str) -> str:
    return op.replace("_", " ")
