"""Comparisons over every combination of models, lengths, capacities and modes, written to a report as they come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packmamba.compare.breakdown import break_down, trace
from packmamba.compare.cases import expand_modes, load_lengths, load_model, make_documents, needs_capacity
from packmamba.compare.modes import Mode, make_batches, require_fit
from packmamba.compare.peers import why_missing
from packmamba.compare.report import write_report
from packmamba.compare.tables import CASE, MODEL, Row
from packmamba.compare.throughput import Comparison, Precision, Trainee
from packmamba.config import ComputeOptions, ModelConfig
from packmamba.environment import describe_environment
from packmamba.model import HybridLM


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What to compare. Every combination of the lists is measured."""

    models: Sequence[str]
    """Names and files that `load_model` takes."""
    layer_patterns: Sequence[str] | None = None
    """Replace the models' own."""
    recompute: Sequence[str] | None = None
    """What the backward computes again, in place of what the models' configurations say."""
    modes: Sequence[str]
    """Names that `expand_modes` takes."""
    batch_sizes: Sequence[int] = ()
    """Rows of a padded batch, for modes that do not say."""
    capacity: Sequence[int]
    """Tokens of a pack."""
    lengths: Sequence[str] = ("lognormal",)
    """Where document lengths come from: names and files that `load_lengths` takes."""
    mean_length: Sequence[float] | None = None
    """Tokens; the lengths are stretched to these means."""
    tokens: int
    """Real tokens of a pass, about."""
    precision: Precision
    repeats: int = 3
    """Timed passes of each mode."""
    profile: bool = False
    """Whether a packed step of each model is broken down by kind of layer."""
    trace: Path | None = None
    """Where a Chrome trace of a packed step goes."""
    output: Path
    """Folder of `compare.json`."""


class Sweep:
    """The comparisons of all combinations, and the results so far.

    Raises UsageError for a model, mode or source of lengths that does not exist, or a document longer than a capacity,
    before anything is timed.
    """

    def __init__(self, options: SweepOptions, device: torch.device) -> None:
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
        """(the columns that the rows have in common, model, how it is computed, documents, capacity, modes)."""
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
        """Passes that `run` takes, warm-ups included."""
        ready = (why_missing(mode, config) is None for _, config, _, _, _, modes in self.cases for mode in modes)
        return (self.options.repeats + 1) * sum(ready)

    def run(self, on_pass: Callable[[str], None]) -> None:
        """Measures everything and writes the report after each pass. on_pass: called with the name of each pass that is
        done."""
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
        """Writes the results so far to `compare.json`."""
        self.report["results"] = [
            common | result.to_dict() for common, comparison in self._comparisons for result in comparison.results
        ]
        write_report(self.options.output / "compare.json", self.report)
