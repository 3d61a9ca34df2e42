"""The tables of `packmamba compare`, as texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

MODEL = ("model", "layer_pattern", "recompute")
"""What rows of one model have in common."""
CASE = (*MODEL, "lengths", "mean_length")
"""What rows of one comparison have in common, beside the capacity."""

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
    varying = [name for name in (*CASE, "capacity") if len({row[name] for row in rows}) > 1]
    lines = [
        [
            *(name.replace("_", " ") for name in varying),
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
        line = [f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in varying]
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
    left = 1 + next((i for i, name in enumerate(header) if name in ("mode", "part")), 0)
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


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
