"""The loader alone: real tokens a second and memory, for 0, 1 and 2 workers.

    python -m benchmarks.data.loader --output benchmarks/results/loader.json

Random documents of log-normal lengths, one token a byte, tokenised before anything is measured; nothing is done with
the batches. Every measurement runs in a process of its own. Speed is that of whole epochs after the first, which also
starts the workers and is reported apart. Memory is what the process and its workers hold together (proportional set
size: shared pages count once) at most, looked at now and then in the first epoch, less what the process held before it
packed; pages of the token file that were read are part of it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packmamba.compare.report import write_report
from packmamba.environment import describe_environment

_LOOKS = 32
"""How often memory is looked at."""


def measure(workers: int, capacity: int, documents: int, epochs: int, cache_dir: str) -> dict[str, Any]:
    """Epochs of one loader in this process, after a first one; without any, nothing is timed."""
    module = _data_module(workers, capacity, documents, cache_dir)
    module.setup("fit")
    module.documents("train")
    before = _held_bytes()
    loader = module.train_dataloader()
    started = time.perf_counter()
    first_batch, held = 0.0, before
    look_every = max(1, len(loader) // _LOOKS)
    seconds, tokens, batches = [], 0, 0
    for epoch in range(epochs + 1):
        module.seek(epoch)
        began = time.perf_counter()
        tokens, batches = 0, 0
        for batch in loader:
            first_batch = first_batch or time.perf_counter() - started
            tokens += batch.num_tokens
            batches += 1
            if epoch == 0 and batches % look_every == 0:
                held = max(held, _held_bytes())
        seconds.append(time.perf_counter() - began)
    rate = [tokens / duration for duration in seconds[1:]]
    return {
        "workers": workers,
        "capacity": capacity,
        "documents": documents,
        "tokens": tokens,
        "batches": batches,
        "tokens_per_second": statistics.median(rate) if rate else None,
        "slowest": min(rate, default=None),
        "fastest": max(rate, default=None),
        "first_batch_seconds": first_batch if rate else None,
        "memory_bytes": held - before,
    }


def speed(result: dict[str, Any]) -> str:
    """`tokens a second (slowest - fastest), seconds to the first batch`."""
    if result["tokens_per_second"] is None:
        return "not timed"
    return (
        f"{result['tokens_per_second']:,.0f} ({result['slowest']:,.0f} - {result['fastest']:,.0f}), "
        f"{result['first_batch_seconds']:.2f} s"
    )


def _data_module(workers: int, capacity: int, documents: int, cache_dir: str) -> Any:
    from packmamba.data import PackedDataModule
    from packmamba.data.sources import RandomLengths

    source = RandomLengths(num_documents=documents)
    return PackedDataModule(
        source=source, capacity=capacity, num_workers=workers, val_fraction=0, cache_dir=os.path.expanduser(cache_dir)
    )


def _held_bytes() -> int:
    """Bytes that this process and its workers hold, shared pages counted once."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    total = 0
    for process in processes:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks loader", description="Tokens a second and memory of the data loader alone."
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--capacities", nargs="+", type=int, default=[4096, 65_536], help="default: 4096 65536")
    parser.add_argument("--documents", type=int, default=10_000, help="documents of an epoch (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=3, help="timed epochs, after one that is not (default: %(default)s)"
    )
    parser.add_argument("--cache_dir", default="~/.cache/packmamba", help="where tokens are (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not Path("/proc/self/smaps_rollup").exists():
        raise OSError("memory is read from /proc/PID/smaps_rollup, which only Linux has")
    if options.measure:
        workers, capacity = options.measure
        print(json.dumps(measure(workers, capacity, options.documents, options.epochs, options.cache_dir)))
        return
    _data_module(0, 4096, options.documents, options.cache_dir).prepare_data()
    results = []
    print(f"{'capacity':>8} {'workers':>7} {'memory':>8}  tokens/s (slowest - fastest), first batch after")
    for capacity in options.capacities:
        for workers in options.workers:
            command = [sys.executable, "-m", "benchmarks.data.loader", "--measure", str(workers), str(capacity)]
            command += ["--documents", str(options.documents), "--epochs", str(options.epochs)]
            command += ["--cache_dir", options.cache_dir]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the measurement with {workers} workers failed:\n{done.stderr}")
            result = json.loads(done.stdout.splitlines()[-1])
            results.append(result)
            print(f"{capacity:>8,} {workers:>7} {result['memory_bytes'] / 1e6:>5.0f} MB  {speed(result)}", flush=True)
    if options.output:
        report = {"benchmark": "loader", "results": results, "environment": describe_environment("cpu")}
        write_report(options.output, report)


if __name__ == "__main__":
    main()
