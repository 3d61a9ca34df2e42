"""Several sources in one, in given proportions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import datasets
import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info

from packmamba.data.sources.base import Source
from packmamba.data.sources.stream import MixedStream, Stream
from packmamba.errors import UsageError

StoppingStrategy = Literal["first_exhausted", "all_exhausted"]


@dataclass(frozen=True, kw_only=True)
class Mixture(Source):
    """Documents of several sources: each next one comes from a source that is drawn by its weight.

    Weights count documents, not tokens. The order within each source is kept, and the same seed always gives the same
    mixture. An epoch is the whole mixture, which `stopping_strategy` ends. Sources of plain text and of conversations
    can be mixed, and sources that are streamed: then the mixture is a stream too.
    """

    sources: list[Source]
    """The sources to mix: at least two, mixtures among them if you like."""
    weights: list[float]
    """One positive number a source; only their proportions matter."""
    stopping_strategy: StoppingStrategy = "first_exhausted"
    """first_exhausted: the mixture ends with the last document of the source that runs out first; no document comes
    twice, the other sources' remaining ones never. all_exhausted: it ends when every document of every source has
    come; sources that have run out begin again, so validation needs a source of its own."""
    seed: int = 0
    """Seed of the drawing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "streaming", any(source.streaming for source in self.sources))

    @property
    def repeats_documents(self) -> bool:
        return self.stopping_strategy == "all_exhausted" or any(source.repeats_documents for source in self.sources)

    def load(self, cache_dir: Path) -> Dataset:
        probabilities = self._probabilities()
        parts = [source.load(cache_dir) for source in self.sources]
        try:
            mixed = datasets.interleave_datasets(
                parts, probabilities=probabilities, seed=self.seed, stopping_strategy=self.stopping_strategy
            )
        except ValueError as error:  # messages with other fields beside role and content
            raise UsageError(f"the columns of a mixture's sources do not fit together: {error}") from error
        for said in self._left_out([len(part) for part in parts], probabilities):
            rank_zero_info(said)
        return mixed

    def _left_out(self, sizes: list[int], probabilities: list[float]) -> list[str]:
        """One line about the documents that no epoch has; nothing where there are none. sizes: documents of each
        source."""
        if self.stopping_strategy == "all_exhausted":
            return []
        numbers = [Dataset.from_dict({"source": np.full(size, k, dtype=np.int16)}) for k, size in enumerate(sizes)]
        drawn = datasets.interleave_datasets(numbers, probabilities=probabilities, seed=self.seed)
        counts = np.bincount(drawn.with_format("numpy")["source"][:], minlength=len(sizes))
        never = [
            f"{size - count:,} of the {size:,} documents of {source}"
            for size, count, source in zip(sizes, counts.tolist(), self.sources, strict=True)
            if count < size
        ]
        if not never:
            return []
        return [
            f"mixture: {len(drawn):,} documents an epoch, which ends when the first source runs out; never seen are "
            f"{', '.join(never)} (stopping_strategy: all_exhausted repeats the others instead)"
        ]

    def stream(self) -> Stream:
        probabilities = self._probabilities()
        parts = [source.stream() for source in self.sources]
        return MixedStream(parts, probabilities, self.stopping_strategy == "all_exhausted", self.seed)

    def _probabilities(self) -> list[float]:
        """The weights, scaled to a sum of 1. Raises UsageError for fields that cannot be used."""
        if self.stopping_strategy not in get_args(StoppingStrategy):
            raise UsageError(
                f"unknown stopping_strategy {self.stopping_strategy!r}; available: "
                f"{', '.join(get_args(StoppingStrategy))}"
            )
        if len(self.sources) < 2:
            raise UsageError(f"a mixture needs at least two sources, got {len(self.sources)}")
        if len(self.weights) != len(self.sources):
            raise UsageError(
                f"a mixture needs one weight a source, got {len(self.weights)} weights for {len(self.sources)} sources"
            )
        for index, weight in enumerate(self.weights):
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"weights must be positive numbers, got {weight} for source {index}")
        if len({source.streaming for source in self.sources}) > 1:
            read = ", ".join(f"{source} is {'' if source.streaming else 'not '}streamed" for source in self.sources)
            raise UsageError(f"a mixture reads all of its sources as streams, or none; {read}")
        return (np.array(self.weights) / sum(self.weights)).tolist()
