"""Pictures of comparisons. Needs matplotlib, which only these functions import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packmamba.compare.tables import CASE, MODEL, Row
from packmamba.compare.throughput import ModeResult
from packmamba.plots import COLOURS, import_pyplot


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
    bars = axes.bar(
        names, medians, yerr=whiskers, capsize=5, color=[_colour(result.mode) for result in results], width=0.6
    )
    axes.bar_label(bars, [f"{median:,.0f}" for median in medians], padding=4)
    axes.set(ylabel="real tokens per second", title=title)
    axes.set_ylim(0, 1.15 * max(result.fastest for result in results))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=150)
    plt.close(figure)


def draw_all(rows: Sequence[Row], shares: Sequence[Row], folder: Path, device: str) -> list[Path]:
    """Every picture for which there are rows; returns the files. rows: of the comparison; shares: of the breakdown."""
    timed = [row for row in rows if row["status"] == "ok"]
    drawn = []
    if timed:
        drawn.append(bars(timed, folder / "throughput.png", device))
        drawn.append(memory(timed, folder / "memory.png", device))
    if len({row["capacity"] for row in timed if row["mode"].startswith("packed")}) > 1:
        drawn.append(against_capacity(timed, folder / "capacity.png", device))
    if shares:
        drawn.append(breakdown(shares, folder / "breakdown.png", device))
    return drawn


def bars(rows: Sequence[Row], png: Path, device: str) -> Path:
    """Real tokens a second; the bar is the median, the whisker runs from the slowest pass to the fastest."""
    medians = [row["tokens_per_second"] for row in rows]
    fastest = [row["num_tokens"] / min(row["seconds"]) for row in rows]
    slowest = [row["num_tokens"] / max(row["seconds"]) for row in rows]
    return _horizontal_bars(
        rows,
        medians,
        png,
        labels=[f"{_label(row, rows)} ({row['padding_fraction']:.0%} padding)" for row in rows],
        numbers=[f"{median:,.0f}" for median in medians],
        limit=1.18 * max(fastest),
        xlabel="real tokens per second, whole training steps",
        title=_title(rows, device),
        xerr=[
            [median - low for median, low in zip(medians, slowest, strict=True)],
            [high - median for median, high in zip(medians, fastest, strict=True)],
        ],
        capsize=3,
    )


def memory(rows: Sequence[Row], png: Path, device: str) -> Path:
    """Activations that a forward keeps for its backward, for each real token of the largest batch."""
    kept = [row["activation_bytes_per_token"] / 1024 for row in rows]
    return _horizontal_bars(
        rows,
        kept,
        png,
        labels=[_label(row, rows) for row in rows],
        numbers=[f"{value:,.1f}" for value in kept],
        limit=1.15 * max(kept),
        xlabel="KiB of activations for each real token",
        title=_title(rows, device),
    )


def _horizontal_bars(
    rows: Sequence[Row],
    values: Sequence[float],
    png: Path,
    *,
    labels: Sequence[str],
    numbers: Sequence[str],
    limit: float,
    xlabel: str,
    title: str,
    **style: Any,
) -> Path:
    """A bar for each row, its number at its end."""
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.34 * len(rows)), constrained_layout=True)
    drawn = axes.barh(range(len(rows)), values, color=[_colour(row["mode"]) for row in rows], height=0.7, **style)
    axes.bar_label(drawn, numbers, padding=4, fontsize=8)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, limit)
    axes.set(xlabel=xlabel, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(plt, figure, png)


def against_capacity(rows: Sequence[Row], png: Path, device: str) -> Path:
    """Real tokens a second of the packed modes against the tokens of a pack."""
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row["mode"].startswith("packed"):
            lines.setdefault(_label(row, rows, with_capacity=False), []).append(row)
    for i, (label, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda row: row["capacity"])
        x, y = [row["capacity"] for row in points], [row["tokens_per_second"] for row in points]
        low = [median - row["num_tokens"] / max(row["seconds"]) for median, row in zip(y, points, strict=True)]
        high = [row["num_tokens"] / min(row["seconds"]) - median for median, row in zip(y, points, strict=True)]
        axes.errorbar(x, y, yerr=[low, high], marker="o", capsize=3, label=label, color=COLOURS[i % len(COLOURS)])
    ticks = sorted({row["capacity"] for points in lines.values() for row in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="tokens of a pack", ylabel="real tokens per second", title=_title(rows, device))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return _save(plt, figure, png)


def breakdown(shares: Sequence[Row], png: Path, device: str) -> Path:
    """Milliseconds of a step by part, forward and backward beside each other, a panel for each model."""
    plt = import_pyplot()
    cases = list(dict.fromkeys(tuple(row[name] for name in MODEL) for row in shares))
    height = 0.8 + 1.9 * len(cases)
    figure, grid = plt.subplots(len(cases), 1, figsize=(8, height), squeeze=False, constrained_layout=True)
    for axes, case in zip(grid[:, 0], cases, strict=True):
        rows = [row for row in shares if tuple(row[name] for name in MODEL) == case]
        left = {"forward": 0.0, "backward": 0.0}
        for i, row in enumerate(rows):
            for phase in left:
                width = 1e3 * row[f"{phase}_seconds"]
                label = f"{row['kind']} × {row['layers']}" if row["layers"] > 1 else row["kind"]
                axes.barh(
                    phase, width, left=left[phase], color=COLOURS[i % len(COLOURS)], height=0.6,
                    label=label if phase == "forward" else None,
                )  # fmt: skip
                left[phase] += width
        axes.invert_yaxis()
        axes.set_yticks(["forward", "backward"], ["forward", "backward,\noptimizer"])
        axes.set(xlabel="ms", title=f"{case[0]}, recompute {case[2]}, a pack of {rows[0]['tokens']:,} tokens, {device}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _save(plt, figure, png)


def _label(row: Row, rows: Sequence[Row], *, with_capacity: bool = True) -> str:
    varying = [str(row[name]) for name in CASE if len({other[name] for other in rows}) > 1]
    if with_capacity and len({other["capacity"] for other in rows}) > 1 and row["mode"].startswith("packed"):
        varying.append(f"{row['capacity']:,}")
    return " ".join([row["mode"], *varying])


def _title(rows: Sequence[Row], device: str) -> str:
    same = [str(rows[0][name]) for name in ("model", "precision") if len({row[name] for row in rows}) == 1]
    documents = f"{rows[0]['lengths']} documents of mean {rows[0]['mean_length']:.0f}"
    if len({(row["lengths"], row["mean_length"]) for row in rows}) > 1:
        documents = "documents"
    return ", ".join([*same, documents, device])


def _colour(mode: str) -> str:
    kinds = ("packed", "padded_sorted", "padded", "single")
    kind_and_size = mode.rpartition("/")[2]
    index = next((i for i, kind in enumerate(kinds) if kind_and_size.startswith(kind)), len(kinds))
    return COLOURS[index]


def _save(plt: Any, figure: Any, png: Path) -> Path:
    figure.suptitle("")
    figure.savefig(png, dpi=150)
    plt.close(figure)
    return png
