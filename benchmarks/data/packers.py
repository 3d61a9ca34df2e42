"""The packing strategies: how full the packs are, how long packing takes, and how much memory it needs.

    python -m benchmarks.data.packers --output benchmarks/results/packers.json

Log-normal lengths. Memory is what NumPy and Python allocate at most while packing, in a run of its own that is not
timed. One thread, but for the products of `threshold_filtering`.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from packmamba.compare.report import write_report
from packmamba.data.lengths import DISTRIBUTIONS, sample_lengths
from packmamba.data.packers import STRATEGIES, pack
from packmamba.environment import describe_environment

PUBLISHED = {"sequential": 0.191, "local_greedy": 0.0041}
"""Padding in PackMamba's own measurement (arXiv 2408.03865), on its own documents."""

QUALITY = (100_000, 4096)
"""Documents and capacity of the comparison of all strategies."""
SPEED = ((1_000_000, 65_536), (10_000_000, 65_536))
"""Documents and capacity that best fit is timed on."""
EMBEDDING = 512
"""Numbers of an embedding for `threshold_filtering`; random here, for time and memory do not depend on them."""


def measure(strategy: str, documents: int, capacity: int, repeats: int) -> dict[str, Any]:
    """One strategy: what it made of so many documents, the median time of `repeats` runs (None without), and its peak
    memory."""
    lengths = sample_lengths("lognormal", num_documents=documents)
    embeddings = None
    if strategy == "threshold_filtering":
        embeddings = np.random.default_rng(0).standard_normal((documents, EMBEDDING), dtype=np.float32)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        packs = pack(lengths, capacity, strategy, embeddings=embeddings)
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    packs = pack(lengths, capacity, strategy, embeddings=embeddings)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "strategy": strategy,
        "documents": documents,
        "tokens": int(lengths.sum()),
        "capacity": capacity,
        "packs": len(packs),
        "utilisation": packs.efficiency,
        "padding": packs.padding_fraction,
        "published_padding": PUBLISHED.get(strategy),
        "documents_split": packs.num_split,
        "seconds": statistics.median(seconds) if seconds else None,
        "peak_bytes": peak_bytes,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks packers",
        description="How full every packing strategy makes its packs, beside PackMamba's padding; its time and memory.",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the documents, to see that it works")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    cases = [(strategy, *QUALITY) for strategy in STRATEGIES] + [("best_fit_decreasing", *case) for case in SPEED]
    results = []
    header = f"{'strategy':<20} {'documents':>10} {'capacity':>8} {'full':>7} {'padding':>7} {'published':>9}"
    print(f"{header} {'memory':>7}  time")
    for strategy, documents, capacity in cases:
        result = measure(strategy, max(1, int(documents * options.scale)), capacity, options.repeats)
        results.append(result)
        published = "" if result["published_padding"] is None else f"{result['published_padding']:.2%}"
        seconds = "not timed" if result["seconds"] is None else f"{result['seconds']:.2f} s"
        print(
            f"{strategy:<20} {result['documents']:>10,} {capacity:>8,} {result['utilisation']:>7.2%} "
            f"{result['padding']:>7.2%} {published:>9} {result['peak_bytes'] / 1e6:>4.0f} MB  {seconds}",
            flush=True,
        )
    if options.output:
        report = {
            "benchmark": "packers",
            "lengths": DISTRIBUTIONS["lognormal"],
            "results": results,
            "environment": describe_environment("cpu"),
        }
        write_report(options.output, report)


if __name__ == "__main__":
    main()
