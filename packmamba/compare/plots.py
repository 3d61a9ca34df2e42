"""Pictures of comparisons. Needs matplotlib, which only these functions import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packmamba.compare.tables import MODEL, Row, case_words, varying
from packmamba.compare.throughput import ModeResult
from packmamba.plots import COLOURS, MARKERS, picture


def plot_throughput(results: Sequence[ModeResult], png: Path, *, title: str) -> None:
    """Real tokens a second for each mode: the bar is the median, the whisker runs from the slowest to the fastest."""
    medians = [result.tokens_per_second for result in results]
    whiskers = [
        [median - result.slowest for median, result in zip(medians, results, strict=True)],
        [result.fastest - median for median, result in zip(medians, results, strict=True)],
    ]
    names = [f"{_words(result.mode)}\n{result.padding_fraction:.0%} padding" for result in results]
    with picture(png, size=(7, 4), title=title) as (_, ((axes,),)):
        colours = [_colour(result.mode) for result in results]
        bars = axes.bar(names, medians, yerr=whiskers, capsize=5, color=colours, width=0.6)
        axes.bar_label(bars, [f"{median:,.0f}" for median in medians], padding=4)
        axes.set(ylabel="real tokens per second")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_ylim(0, 1.15 * max(result.fastest for result in results))


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
        xlabel="activations kept for each real token (KiB)",
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
    longest = max(map(len, labels))
    with picture(png, size=(5 + 0.07 * longest, 1.2 + 0.34 * len(rows)), title=title) as (_, ((axes,),)):
        drawn = axes.barh(range(len(rows)), values, color=[_colour(row["mode"]) for row in rows], height=0.7, **style)
        axes.bar_label(drawn, numbers, padding=4, fontsize=8)
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.margins(y=0.4 / len(rows))
        axes.invert_yaxis()
        axes.set_xlim(0, limit)
        axes.set(xlabel=xlabel)
    return png


def against_capacity(rows: Sequence[Row], png: Path, device: str) -> Path:
    """Real tokens a second of the packed modes against the tokens of a pack."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row["mode"].startswith("packed"):
            lines.setdefault(_label(row, rows, with_capacity=False), []).append(row)
    ticks = sorted({row["capacity"] for points in lines.values() for row in points})
    with picture(png, size=(7, 4 + 0.2 * len(lines)), title=_title(rows, device)) as (figure, ((axes,),)):
        for i, (label, points) in enumerate(lines.items()):
            points = sorted(points, key=lambda row: row["capacity"])
            x, y = [row["capacity"] for row in points], [row["tokens_per_second"] for row in points]
            low = [median - row["num_tokens"] / max(row["seconds"]) for median, row in zip(y, points, strict=True)]
            high = [row["num_tokens"] / min(row["seconds"]) - median for median, row in zip(y, points, strict=True)]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.errorbar(x, y, yerr=[low, high], capsize=3, label=label, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        fastest = max(row["num_tokens"] / min(row["seconds"]) for points in lines.values() for row in points)
        axes.set_ylim(0, 1.05 * fastest)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="capacity of a pack (tokens)", ylabel="real tokens per second")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=1 if max(map(len, lines)) > 40 else 2)
    return png


def breakdown(shares: Sequence[Row], png: Path, device: str) -> Path:
    """Time of a step for each token by part, forward and backward: a panel for each model, all on one axis."""
    cases = list(dict.fromkeys(tuple(row[name] for name in MODEL) for row in shares))
    parts = list(dict.fromkeys(row["kind"] for row in shares))
    names = [name for name in varying(shares, MODEL) if name != "model"]
    size = (8, 1.4 + 1.3 * len(cases))
    title = f"A step of a pack of {_numbers(row['tokens'] for row in shares)} tokens, {device}"
    with picture(png, size=size, title=title, rows=len(cases), sharex=True) as (figure, grid):
        for axes, case in zip(grid[:, 0], cases, strict=True):
            rows = [row for row in shares if tuple(row[name] for name in MODEL) == case]
            left = {"forward": 0.0, "backward": 0.0}
            for row in rows:
                for phase in left:
                    width = 1e6 * row[f"{phase}_seconds"] / row["tokens"]
                    axes.barh(phase, width, left=left[phase], color=_part_colour(row["kind"], parts), height=0.6)
                    left[phase] += width
            axes.invert_yaxis()
            axes.set_yticks(["forward", "backward"], ["forward", "backward,\noptimiser"])
            axes.set(title=case_words(rows[0], ["model", *names]))
        grid[-1, 0].set(xlabel="time for each token (µs)")
        grid[-1, 0].xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        patch = type(grid[0, 0].patches[0])
        handles = [patch((0, 0), 1, 1, color=_part_colour(part, parts), label=part) for part in parts]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(parts), 4))
    return png


def _part_colour(part: str, parts: Sequence[str]) -> str:
    return COLOURS[parts.index(part) % len(COLOURS)]


def _label(row: Row, rows: Sequence[Row], *, with_capacity: bool = True) -> str:
    """What tells a row from the others: the mode, and every value that varies, with what it is a value of."""
    names = varying(rows)
    if with_capacity and len({other["capacity"] for other in rows}) > 1 and row["mode"].startswith("packed"):
        names.append("capacity")
    return ", ".join(filter(None, (_words(row["mode"]), case_words(row, names))))


def _title(rows: Sequence[Row], device: str) -> str:
    same = [str(rows[0][name]) for name in ("model", "precision") if len({row[name] for row in rows}) == 1]
    documents = f"{rows[0]['lengths']} documents of mean length {rows[0]['mean_length']:,.0f}"
    if len({(row["lengths"], row["mean_length"]) for row in rows}) > 1:
        documents = "documents"
    return ", ".join([*same, documents, device])


def _words(mode: str) -> str:
    """`padded_sorted:8` as `padded, sorted, 8 rows`."""
    peer, _, kind = mode.rpartition("/")
    kind, _, size = kind.partition(":")
    unit = " rows" if kind.startswith("padded") else " tokens" if kind == "dense" else ""
    words = [kind.replace("_", ", "), *([size.replace("_", " ") + unit] if size else [])]
    return (f"{peer}: " if peer else "") + ", ".join(words)


def _numbers(values: Any) -> str:
    return " or ".join(f"{value:,}" for value in sorted(set(values)))


def _colour(mode: str) -> str:
    kinds = ("packed", "padded_sorted", "single", "padded")
    kind_and_size = mode.rpartition("/")[2]
    return COLOURS[next((i for i, kind in enumerate(kinds) if kind_and_size.startswith(kind)), len(kinds))]
