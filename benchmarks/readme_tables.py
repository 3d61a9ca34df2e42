"""Renders benchmarks/results/*.json into the tables of the READMEs, between `<!-- table: NAME -->` and `<!-- end -->`.

python -m benchmarks.readme_tables
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.loader import speed
from benchmarks.operators.accuracy import table as accuracy
from benchmarks.operators.tables import kernels_table, scaling_table
from packmamba.compare.tables import markdown
from packmamba.compare.tables import table as compare_table

Report = dict[str, Any]


def compare(report: Report) -> list[list[str]]:
    rows = [row for row in report["results"] if row["status"] != "missing"]
    return compare_table(rows)


def kernels(report: Report) -> list[list[str]]:
    return kernels_table(report["results"])


def scaling(report: Report) -> list[list[str]]:
    return scaling_table(report["results"])


def kernels_cpu(report: Report) -> list[list[str]]:
    """The CPU path against the definition."""
    medians: dict[tuple[str, str], dict[str, float]] = {}
    for result in report["results"]:
        if result["milliseconds"]:
            times = medians.setdefault((result["op"], result["part"]), {})
            times[result["implementation"]] = result["milliseconds"]["median"]
    rows = [["operator", "part", "definition", "CPU path", "speed-up"]]
    for (op, part), times in medians.items():
        naive, fast = times["naive"], times["packmamba"]
        rows.append([f"`{op}`", part, f"{naive:,.0f} ms", f"{fast:,.1f} ms", f"{naive / fast:.1f}×"])
    return rows


def loss_memory(report: Report) -> list[list[str]]:
    rows = [["loss", "peak memory"]]
    for result in report["results"]:
        rows.append([result["variant"], f"{result['peak_bytes'] / 1e9:.2f} GB"])
    return rows


def packers(report: Report) -> list[list[str]]:
    rows = [["strategy", "documents", "capacity", "full", "padding", "PackMamba's padding", "memory", "time"]]
    for result in report["results"]:
        published, seconds = result["published_padding"], result["seconds"]
        rows.append(
            [
                f"`{result['strategy']}`",
                f"{result['documents']:,}",
                f"{result['capacity']:,}",
                f"{result['utilisation']:.2%}",
                f"{result['padding']:.2%}",
                "" if published is None else f"{published:.2%}",
                f"{result['peak_bytes'] / 1e6:,.0f} MB",
                "not timed" if seconds is None else f"{seconds:.2f} s",
            ]
        )
    return rows


def loader(report: Report) -> list[list[str]]:
    rows = [["capacity", "workers", "tokens/s (slowest - fastest), first batch after", "memory"]]
    for result in report["results"]:
        rows.append(
            [
                f"{result['capacity']:,}",
                str(result["workers"]),
                speed(result),
                f"{result['memory_bytes'] / 1e6:,.0f} MB",
            ]
        )
    return rows


def tokenise(report: Report) -> list[list[str]]:
    workers = sorted({result["workers"] for result in report["results"]})
    names = {0: "in the main process", 1: "by 1 process"}
    rows = [["tokenizer", "documents", *(names.get(n, f"by {n} processes") for n in workers)]]
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for result in report["results"]:
        speeds = cells.setdefault((result["tokenizer"], result["documents"]), {})
        speeds[result["workers"]] = f"{result['tokens_per_second'] / 1e6:,.2f} M tokens/s"
    for (tokenizer, documents), speeds in cells.items():
        rows.append([f"`{tokenizer}`", documents, *(speeds[n] for n in workers)])
    return rows


def instructions(report: Report) -> list[list[str]]:
    architectures = list(dict.fromkeys(result["architecture"] for result in report["results"]))
    rows = [["operator", "kernel", *(f"sm_{architecture}" for architecture in architectures)]]
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for result in report["results"]:
        cell = f"{result['instructions']:.0f} · {result['registers']} · {result['resident_warps']}"
        if result.get("issue_cycles") is not None:  # of a model that knows some architectures only
            cell += f" · {result['issue_cycles']:.0f}"
        if result["spilled_bytes"]:
            cell += f" ({result['spilled_bytes']} B spilled)"
        cells.setdefault((result["op"], result["kernel"]), {})[result["architecture"]] = cell
    for (op, kernel), by_architecture in cells.items():
        rows.append([f"`{op}`", kernel.replace("_", " "), *(by_architecture[a] for a in architectures)])
    return rows


def host(report: Report) -> list[list[str]]:
    rows = [["call", "launches", "forward", "backward", "both"]]
    for result in report["results"]:
        times = result["microseconds"]
        op = result["op"] if result["op"] == "autograd alone" else f"`{result['op']}`"
        rows.append([op, str(result["launches"]), *(f"{times[p]['min']:.0f}" for p in ("forward", "backward", "both"))])
    return rows


TABLES: dict[str, Callable[[Report], list[list[str]]]] = {
    "compare": compare,
    "recompute": compare,
    "kernels_cpu": kernels_cpu,
    "loss_memory": loss_memory,
    "packers": packers,
    "loader": loader,
    "tokenise": tokenise,
    "instructions": instructions,
    "host": host,
    "accuracy": accuracy,
    "kernels": kernels,
    "scaling": scaling,
}
"""Tables by name; each is drawn from benchmarks/results/NAME.json."""

UNMEASURED = {
    "kernels": "Unmeasured: these kernels have not run on a GPU yet.",
    "scaling": "Unmeasured: the time for each token has not been taken on a GPU yet.",
}
"""What stands in place of a table that may be without results."""

DOCUMENTS = ("benchmarks/README.md", "kernels/README.md")
"""Where the tables stand."""


def render(readme: str, results: Path) -> str:
    """The text with every marked table drawn anew.

    Raises ValueError for a mark that names no table, FileNotFoundError where its results are missing and it is not one
    of UNMEASURED.
    """

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"a README marks a table {name!r}; available: {', '.join(TABLES)}")
        file = results / f"{name}.json"
        if name in UNMEASURED and not file.exists():
            return "\n".join([f"<!-- table: {name} -->", UNMEASURED[name], "<!-- end -->"])
        report = json.loads(file.read_text())
        drawn = markdown(TABLES[name](report))
        return "\n".join([f"<!-- table: {name} -->", drawn, "", _where(name, report), "<!-- end -->"])

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, readme, flags=re.DOTALL)


def _where(name: str, report: Report) -> str:
    environment = report["environment"]
    if name == "instructions":  # made by a compiler alone, whatever the machine
        return f"triton {environment['versions']['triton']}, commit {_commit(environment)}."
    if environment["device_type"] == "cuda":
        return (
            f"{environment['device']}, CUDA {environment['cuda']}, torch {environment['versions']['torch']}, "
            f"triton {environment['versions']['triton']}, commit {_commit(environment)}."
        )
    return (
        f"{environment['device']}, {environment['threads']} threads, Python {environment['python']}, "
        f"torch {environment['versions']['torch']}, commit {_commit(environment)}."
    )


def _commit(environment: Report) -> str:
    return (environment["commit"] or "unknown")[:8] + (" with changes" if environment["dirty"] else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=f"Renders benchmarks/results/*.json into {' and '.join(DOCUMENTS)}.")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: the working directory)")
    options = parser.parse_args(arguments)
    for name in DOCUMENTS:
        document = options.root / name
        document.write_text(render(document.read_text(), options.root / "benchmarks" / "results"))


if __name__ == "__main__":
    main()
