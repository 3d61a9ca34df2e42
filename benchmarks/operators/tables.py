"""The tables of `python -m benchmarks kernels` and `python -m benchmarks scaling`, as texts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.operators.cases import IMPLEMENTATIONS
from benchmarks.operators.timing import PARTS

Row = dict[str, Any]

SIZE = ("op", "tokens", "channels", "states", "dtype")
"""What rows of one size have in common."""

SHORT_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

HEADER = (
    f"{'operator':<15}{'T':>8}{'E':>6}{'N':>4} {'dtype':<6}{'documents':<10}{'part':<9}{'implementation':<22}"
    f"{'median ms':>10}{'min ms':>10}"
)
LIMITS_HEADER = f"{'bytes':>8}{'special':>8}{'target':>8}"


def render_row(row: Row) -> str:
    """One line of the table; `HEADER` is its first."""
    states = "" if row["states"] is None else row["states"]
    size = (
        f"{row['op']:<15}{row['tokens']:>8}{row['channels']:>6}{states:>4} {SHORT_DTYPES[row['dtype']]:<6}"
        f"{row['distribution']:<10}{row['part']:<9}{row['implementation']:<22}"
    )
    if row["skipped"]:
        return f"{size}{row['skipped']}"
    times = row["milliseconds"]
    line = f"{size}{times['median']:>10.3f}{times['min']:>10.3f}"
    for bound in (row["bounds_milliseconds"] or {}).values():
        line += f"{'?' if bound is None else f'{bound:.3f}':>8}"
    return line + ("" if row["target_milliseconds"] is None else f"{row['target_milliseconds']:>8.2f}")


def _medians(rows: Sequence[Row]) -> dict[tuple[Any, ...], dict[tuple[str, str, str], float]]:
    """By size: milliseconds by (implementation, distribution, part), where they were timed."""
    medians: dict[tuple[Any, ...], dict[tuple[str, str, str], float]] = {}
    for row in rows:
        if row["milliseconds"]:
            times = medians.setdefault(tuple(row[name] for name in SIZE), {})
            times[row["implementation"], row["distribution"], row["part"]] = row["milliseconds"]["median"]
    return medians


def _name(size: tuple[Any, ...]) -> str:
    op, tokens, channels, states, dtype = size
    return f"{op} T={tokens:,} E={channels:,}{'' if states is None else f' N={states}'} {SHORT_DTYPES[dtype]}"


def speedups(rows: Sequence[Row]) -> Iterator[str]:
    """How much faster than the definition packmamba is, forward alone and with the backward, where both were timed."""
    for size, times in _medians(rows).items():
        for distribution in dict.fromkeys(distribution for _, distribution, _ in times):
            if all((name, distribution, part) in times for name in ("packmamba", "naive") for part in PARTS):
                slow, fast = ([times[n, distribution, part] for part in PARTS] for n in ("naive", "packmamba"))
                yield (
                    f"{_name(size)} {distribution}: {slow[0] / fast[0]:.1f}x the definition forward, "
                    f"{sum(slow) / sum(fast):.1f}x with the backward"
                )


def over_unpacked(row: Row, rows: Sequence[Row], implementation: str = "packmamba") -> float | None:
    """How many times as long a row took as an implementation on the same tokens as a batch of equal rows, one document
    each; None where either was not timed."""
    times = _medians(rows).get(tuple(row[name] for name in SIZE), {})
    unpacked = times.get((implementation, "rows", row["part"]))
    return row["milliseconds"]["median"] / unpacked if row["milliseconds"] and unpacked else None


def packed_over_unpacked(rows: Sequence[Row]) -> Iterator[str]:
    """packmamba's time on log-normal documents over every unpacked time: its own on equal rows, and that of peers."""
    for row in rows:
        if row["implementation"] != "packmamba" or row["distribution"] != "lognormal":
            continue
        for name, implementation in IMPLEMENTATIONS.items():
            ratio = over_unpacked(row, rows, name)
            if ratio is not None and (name == "packmamba" or implementation.peer):
                size = _name(tuple(row[key] for key in SIZE))
                yield f"{size} {row['part']}: packed, log-normal, takes {ratio:.2f}x the time of {name} on equal rows"


def kernels_table(rows: Sequence[Row]) -> list[list[str]]:
    """packmamba's medians beside bounds and targets, peers' where there are any."""
    medians = _medians(rows)
    peers = [name for name in IMPLEMENTATIONS if name not in ("packmamba", "naive")]
    peers = [name for name in peers if any(row["milliseconds"] and row["implementation"] == name for row in rows)]
    limits = ["by bytes", "by special functions", "target", "÷ equal rows"]
    lines = [["operator", "T", "E", "N", "dtype", "documents", "part", "packmamba", *limits, *peers]]

    def text(value: float | None, form: str = "{:.2f} ms") -> str:
        return "" if value is None else form.format(value)

    for row in rows:
        if row["implementation"] != "packmamba":
            continue
        size = tuple(row[name] for name in SIZE)
        times, bounds = medians.get(size, {}), row["bounds_milliseconds"] or {}
        lines.append(
            [
                f"`{row['op']}`",
                f"{row['tokens']:,}",
                f"{row['channels']:,}",
                "" if row["states"] is None else str(row["states"]),
                SHORT_DTYPES[row["dtype"]],
                row["distribution"],
                row["part"],
                text(row["milliseconds"]["median"], "{:.3f} ms") if row["milliseconds"] else row["skipped"],
                text(bounds.get("bytes")),
                text(bounds.get("special_functions")),
                text(row["target_milliseconds"], "≤ {:.2f} ms"),
                text(over_unpacked(row, rows), "{:.2f}×"),
                *(text(times.get((name, row["distribution"], row["part"])), "{:.3f} ms") for name in peers),
            ]
        )
    return lines


def nanoseconds(row: Row) -> float | None:
    """Median time for each token of a pack."""
    return row["milliseconds"] and 1e6 * row["milliseconds"]["median"] / row["tokens"]


def spreads(rows: Sequence[Row]) -> dict[tuple[str, str, str], float | None]:
    """By (op, distribution, part): how far, in percent of the median over all sizes, the time for each token of a size
    is at most from that median; None where fewer than two sizes were timed."""
    lines: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        times = lines.setdefault((row["op"], row["distribution"], row["part"]), [])
        if row["milliseconds"]:
            times.append(1e6 * row["milliseconds"]["median"] / row["tokens"])
    return {key: _spread(times) for key, times in lines.items()}


def _spread(times: Sequence[float]) -> float | None:
    if len(times) < 2:
        return None
    median = statistics.median(times)
    return 100 * max(abs(time - median) for time in times) / median


def scaling_table(rows: Sequence[Row]) -> list[list[str]]:
    """Nanoseconds a token by size, and their spread."""
    sizes = sorted({row["tokens"] for row in rows})
    lines = [["operator", "documents", "part", *(f"T = {size:,}" for size in sizes), "spread"]]
    for (op, distribution, part), spread in spreads(rows).items():
        mine = {
            row["tokens"]: row
            for row in rows
            if (row["op"], row["distribution"], row["part"]) == (op, distribution, part)
        }
        cells = []
        for size in sizes:
            time = nanoseconds(mine[size]) if size in mine else None
            cells.append(f"{time:,.2f} ns" if time is not None else mine[size]["skipped"] if size in mine else "")
        lines.append([f"`{op}`", distribution, part, *cells, "" if spread is None else f"±{spread:.1f}%"])
    return lines
