"""The tables of `packmamba compare`, as texts."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

Row = dict[str, Any]

MODEL = ("model", "layer_pattern", "recompute")
"""What rows of one model have in common."""
CASE = (*MODEL, "lengths", "mean_length")
"""What rows of one comparison have in common, beside the capacity."""

ESSENTIAL = ("real tokens/s", "packed is", "padding", "forward", "backward")
"""Columns that a narrow terminal has before others."""

WORDS = {
    "model": "{}",
    "layer_pattern": "pattern {}",
    "recompute": "recompute {}",
    "lengths": "{} documents",
    "mean_length": "mean length {:,.0f}",
    "capacity": "packs of {:,}",
}
"""How a row's values are named where no column heads them."""


def varying(rows: Sequence[Row], names: Sequence[str] = CASE) -> list[str]:
    """Those names whose values tell rows from each other; not the layer pattern where the model's name tells it."""
    names = [name for name in names if len({row[name] for row in rows}) > 1]
    patterns = {(row["model"], row["layer_pattern"]) for row in rows}
    told = len(patterns) == len({row["model"] for row in rows})
    return [name for name in names if name != "layer_pattern" or not told]


def case_words(row: Row, names: Sequence[str]) -> str:
    """Some of a row's values in words: `hybrid-tiny, recompute none, packs of 2,048`."""
    return ", ".join(WORDS[name].format(row[name]) for name in names)


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows of the comparison, as texts."""
    told = varying(rows, (*CASE, "capacity"))
    lines = [
        [
            *(name.replace("_", " ") for name in told),
            "mode",
            "real tokens/s (slowest - fastest)",
            "forward + backward",
            "padding",
            "steps",
            "activations",
            "peak",
            "MFU",
            "packed is",
        ]
    ]
    for row in rows:
        line = [f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in told]
        line.append(f"`{row['mode']}`")
        if row["status"] != "ok":
            lines.append([*line, f"{row['status']}: {row['detail']}", *[""] * 7])
            continue
        slowest, fastest = (row["num_tokens"] / pick(row["seconds"]) for pick in (max, min))
        packed = _packed_of(row, rows)
        lines.append(
            [
                *line,
                f"{row['tokens_per_second']:,.0f} ({slowest:,.0f} - {fastest:,.0f})",
                f"{row['forward_backward_tokens_per_second']:,.0f}",
                f"{row['padding_fraction']:.1%}",
                str(row["num_steps"]),
                f"{row['activation_bytes_per_token'] / 1024:,.1f} KiB",
                "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:,.1f} GiB",
                "" if row["mfu"] is None else f"{row['mfu']:.1%}",
                ""
                if packed is None or packed is row
                else f"{packed['tokens_per_second'] / row['tokens_per_second']:.2f}×",
            ]
        )
    optional = ("peak", "MFU", "packed is")
    kept = [i for i, name in enumerate(lines[0]) if name not in optional or any(line[i] for line in lines[1:])]
    return [[line[i] for i in kept] for line in lines]


def _packed_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The fastest packed row of packmamba on the same model and documents."""
    candidates = [
        other
        for other in rows
        if other["mode"].startswith("packed") and other["status"] == "ok" and all(other[k] == row[k] for k in CASE)
    ]
    return max(candidates, key=lambda other: other["tokens_per_second"], default=None)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The first column, and those up to `mode` or `part`, are aligned to the left, numbers after them to the right."""
    header, *rows = lines
    left = _left_columns(header)
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def as_text(lines: Sequence[Sequence[str]], width: int, essential: Sequence[str]) -> str:
    """The table for a terminal: aligned, with those of its columns that fit into `width` characters. Spreads, which
    cells have in brackets, are columns of their own.

    essential: names of columns that are wanted before the others. A row that only has a remark has it below it.
    """
    header, *rows = _with_spreads_apart([[cell.strip("`") for cell in line] for line in lines])
    left = _left_columns(header)
    remarked = [len(row) > left + 1 and not any(row[left + 1 :]) for row in rows]
    measured = [row for row, has_remark in zip(rows, remarked, strict=True) if not has_remark]
    widths = [max(map(len, (*name.split(), *(row[i] for row in measured)))) for i, name in enumerate(header)]
    for row in rows:
        widths[:left] = [max(size, len(cell)) for size, cell in zip(widths, row[:left], strict=False)]
    kept: list[int] = []
    wanted = [*range(left), *(header.index(name) for name in essential if name in header)]
    for i in [*wanted, *(i for i in range(len(header)) if i not in wanted)]:
        if not kept or sum(widths[j] + 2 for j in (*kept, i)) - 2 <= width:
            kept.append(i)
    kept.sort()

    def aligned(cells: Sequence[str]) -> str:
        sized = zip(kept, cells, strict=False)
        return "  ".join(c.ljust(widths[i]) if i < left else c.rjust(widths[i]) for i, c in sized).rstrip()

    words = [wrap(header[i], widths[i]) for i in kept]
    depth = max(map(len, words))
    text = [aligned(line) for line in zip(*([""] * (depth - len(word)) + word for word in words), strict=True)]
    for row, has_remark in zip(rows, remarked, strict=True):
        text.append(aligned([row[i] for i in kept if not has_remark or i < left]))
        if has_remark:
            text += wrap(row[left], width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(text)


def _with_spreads_apart(lines: list[list[str]]) -> list[list[str]]:
    """`5,575 (5,349 - 6,497)` as two cells, where the header is such a cell too."""
    for i in reversed([i for i, name in enumerate(lines[0]) if name.endswith(")")]):
        for line in lines:
            value, _, spread = line[i].partition(" (") if line[i].endswith(")") else (line[i], "", "")
            line[i : i + 1] = [value, spread.removesuffix(")")]
    return lines


def _left_columns(header: Sequence[str]) -> int:
    """Columns that say what a row is about; numbers follow."""
    return 1 + next((i for i, name in enumerate(header) if name in ("mode", "part")), 0)


def breakdown_table(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["model", "recompute", "part", "layers", "forward", "backward", "of the step", "kept for each token"]]
    for row in rows:
        same = [r for r in rows if all(r[k] == row[k] for k in MODEL)]
        total = sum(r["forward_seconds"] + r["backward_seconds"] for r in same)
        share = (row["forward_seconds"] + row["backward_seconds"]) / total
        kept = "" if row["kept_bytes"] is None else f"{row['kept_bytes'] / row['tokens'] / 1024:,.1f} KiB"
        lines.append(
            [
                row["model"],
                row["recompute"],
                row["kind"],
                str(row["layers"]),
                f"{1e3 * row['forward_seconds']:,.1f} ms",
                f"{1e3 * row['backward_seconds']:,.1f} ms",
                f"{share:.0%}",
                kept,
            ]
        )
    return lines
