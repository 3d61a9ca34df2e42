"""Packed against padded against one document at a time: full training steps on the same documents, timed.

    packmamba compare                                          # a tiny hybrid, on this machine
    packmamba compare --models mamba-1.4b --capacity 16384 65536 --modes packed padded padded_sorted single

Real tokens only. All modes have to find the same loss on the untrained model before any of them is timed. Every list is
swept; results are written after each pass, so an interrupted run keeps what it has. Needs torch, triton and numpy only
(pictures need matplotlib).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from packmamba.compare.breakdown import break_down, trace
from packmamba.compare.cases import expand_modes, load_lengths, load_model, make_documents, needs_capacity
from packmamba.compare.modes import PACKING_STRATEGIES, Mode, make_batches, require_fit
from packmamba.compare.peers import why_missing
from packmamba.compare.report import add_device, chosen_device, positive, write_report
from packmamba.compare.tables import CASE, MODEL, Row, breakdown_table, markdown, table
from packmamba.compare.throughput import Comparison, Precision, Trainee
from packmamba.config import ComputeOptions, ModelConfig, Recompute
from packmamba.data.lengths import DISTRIBUTIONS
from packmamba.environment import describe_environment
from packmamba.model import HybridLM

DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "models": ["mamba-130m"],
        "capacity": [16_384],
        "batch_sizes": [4, 8, 16],
        "tokens": 65_536,
        "precision": "bf16-mixed",
    },
    "cpu": {
        "models": ["hybrid-tiny"],
        "capacity": [4096],
        "batch_sizes": [4, 8],
        "tokens": 16_384,
        "precision": "32-true",
    },
}
"""What is compared where the options say nothing."""

DEFAULT_MODES = ("packed", "padded", "padded_sorted", "single", "mamba-ssm/padded:8", "mamba-ssm/dense:4096")


class Sweep:
    """Everything that one call compares, and what has been measured so far."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.modes = expand_modes(options.modes, options.batch_sizes)
        self.report: dict[str, Any] = {
            "benchmark": "compare",
            "results": [],
            "breakdown": [],
            "environment": describe_environment(device),
        }
        self._comparisons: list[tuple[Row, Comparison]] = []
        self.cases = list(self._cases())

    def _cases(self) -> Iterator[tuple[Row, ModelConfig, ComputeOptions, list[np.ndarray], int, list[Mode]]]:
        """(common columns of the rows, model, how it is computed, documents, capacity, modes); bad input raises here,
        before anything is timed."""
        options = self.options
        patterns, recomputes = options.layer_patterns or [None], options.recompute or [None]
        documents: dict[tuple[str, float | None], np.ndarray] = {
            (source, mean): load_lengths(source, options.tokens, mean)
            for source, mean in itertools.product(options.lengths, options.mean_length or [None])
        }
        for name, pattern, recompute in itertools.product(options.models, patterns, recomputes):
            config, compute = load_model(name, pattern, recompute)
            for (source, _), lengths in documents.items():
                texts = make_documents(lengths, config.vocab_size)
                common = {
                    "model": name,
                    "layer_pattern": config.layer_pattern,
                    "recompute": compute.recompute,
                    "lengths": source,
                    "mean_length": round(float(lengths.mean()), 1),
                    "precision": options.precision,
                }
                for i, capacity in enumerate(options.capacity):
                    modes = [mode for mode in self.modes if i == 0 or needs_capacity(mode)]
                    require_fit(texts, capacity)
                    yield common | {"capacity": capacity}, config, compute, texts, capacity, modes

    @property
    def num_passes(self) -> int:
        ready = (why_missing(mode, config) is None for _, config, _, _, _, modes in self.cases for mode in modes)
        return (self.options.repeats + 1) * sum(ready)

    def run(self, on_pass: Callable[[str], None]) -> None:
        losses: dict[tuple[Any, ...], float | None] = {}
        for common, config, compute, documents, capacity, modes in self.cases:
            same = tuple(common[name] for name in CASE if name != "recompute")
            comparison = Comparison(
                config,
                documents,
                capacity,
                modes=[str(mode) for mode in modes],
                device=self.device,
                precision=self.options.precision,
                expected_loss=losses.get(same),
                compute=compute,
            )
            self._comparisons.append((common, comparison))

            def passed(mode: str, common: Row = common) -> None:
                self.write()
                on_pass(f"{common['model']} {common['lengths']} {common['capacity']:,} {mode}")

            comparison.run(self.options.repeats, passed)
            losses[same] = comparison.loss
            self.write()
        if self.options.profile or self.options.trace is not None:
            self._profile()

    def _profile(self) -> None:
        """The breakdown of a packed step, once for each model."""
        seen = set()
        for common, config, compute, documents, capacity, _ in self.cases:
            key = tuple(common[name] for name in MODEL)
            if key in seen:
                continue
            seen.add(key)
            batch = max(make_batches(Mode("packed"), documents, capacity), key=lambda b: b.packing.num_tokens)
            try:
                torch.manual_seed(0)
                trainee = Trainee(HybridLM(config, compute), self.device, self.options.precision)
                for share in break_down(trainee, batch):
                    self.report["breakdown"].append(common | {"tokens": batch.num_tokens} | share.to_dict())
                if self.options.trace is not None:
                    trace(trainee, batch, self.options.trace)
            except torch.OutOfMemoryError as error:
                print(f"no breakdown of {common['model']}: out of memory, {str(error).splitlines()[0]}")
            self.write()

    def write(self) -> None:
        """The results so far."""
        self.report["results"] = [
            common | result.to_dict() for common, comparison in self._comparisons for result in comparison.results
        ]
        write_report(self.options.output / "compare.json", self.report)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Yields what names a finished pass; a bar where rich and a terminal are there, else a line for each."""
    done = itertools.count(1)
    if importlib.util.find_spec("rich") is None or not sys.stderr.isatty():
        yield lambda text: print(f"{next(done)}/{total} {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packmamba compare",
        description="Trains on the same documents packed, padded and one at a time, and times it. Lists are swept.",
        epilog=(
            f"modes: packed[:STRATEGY|:all], padded[:ROWS], padded_sorted[:ROWS], single, mamba-ssm/MODE, "
            f"mamba-ssm/dense:TOKENS; strategies: {', '.join(PACKING_STRATEGIES)}; lengths: "
            + "; ".join(f"{name}: {meaning}" for name, meaning in DISTRIBUTIONS.items())
        ),
    )

    def default(key: str) -> str:
        return f"(default: {_text(DEFAULTS['cuda'][key])} on CUDA, {_text(DEFAULTS['cpu'][key])} on the CPU)"

    parser.add_argument("--models", nargs="+", help=f"presets, or YAML or JSON files {default('models')}")
    parser.add_argument("--layer-patterns", nargs="+", help="layer patterns that replace the models' own, quoted")
    parser.add_argument("--recompute", nargs="+", choices=get_args(Recompute), help="what the backward computes again")
    parser.add_argument(
        "--modes", nargs="+", default=list(DEFAULT_MODES), help=f"ways to train (default: {' '.join(DEFAULT_MODES)})"
    )
    parser.add_argument("--capacity", nargs="+", type=positive, help=f"tokens of a pack {default('capacity')}")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=positive, help=f"rows of a padded batch {default('batch_sizes')}"
    )
    parser.add_argument(
        "--lengths", nargs="+", default=["lognormal"],
        help="distributions, histograms (.json, .csv), arrays of lengths (.npy) or training configurations (.yaml), "
        "whose documents are loaded (default: lognormal)",
    )  # fmt: skip
    parser.add_argument("--mean-length", nargs="+", type=positive, help="stretch the lengths to these means, in tokens")
    parser.add_argument("--tokens", type=positive, help=f"real tokens of a pass, about {default('tokens')}")
    parser.add_argument("--precision", choices=get_args(Precision), help=default("precision"))
    parser.add_argument("--repeats", type=positive, default=3, help="timed passes of each mode (default: 3)")
    add_device(parser)
    parser.add_argument("--profile", action="store_true", help="time and memory of a packed step by kind of layer too")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a Chrome trace of a packed step too")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/compare"), help="folder of results (default: %(default)s)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="write no PNG")
    return parser


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 130 where it was interrupted. Wrong options leave through argparse with 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    device = chosen_device(parser, options)
    if not options.no_pictures and importlib.util.find_spec("matplotlib") is None:
        parser.error("pictures need matplotlib: pip install 'packmamba[plots]', or use --no-pictures")
    for key, value in DEFAULTS[device.type].items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    try:
        sweep = Sweep(options, device)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(str(error))
    environment = sweep.report["environment"]
    print(f"{environment['device']}, torch {torch.__version__}, {options.precision}")
    code = 0
    try:
        with progress(sweep.num_passes) as advance:
            sweep.run(advance)
    except KeyboardInterrupt:
        print("interrupted; what was measured so far:")
        code = 130
    sweep.write()
    _finish(sweep, options)
    return code


def _finish(sweep: Sweep, options: argparse.Namespace) -> None:
    rows, shares = sweep.report["results"], sweep.report["breakdown"]
    text = markdown(table(rows)) if rows else "nothing was measured"
    if shares:
        text += "\n\n" + markdown(breakdown_table(shares))
    print(text)
    (options.output / "compare.md").write_text(text + "\n")
    written = [options.output / "compare.json", options.output / "compare.md"]
    if not options.no_pictures:
        from packmamba.compare.plots import draw_all

        written += draw_all(rows, shares, options.output, sweep.report["environment"]["device"])
    print("Real tokens only; every mode found the same loss on the untrained model before it was timed.")
    for path in written:
        print(path)


if __name__ == "__main__":
    sys.exit(main())
