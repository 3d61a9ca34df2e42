"""Documents that are read as they are needed, instead of all of them ahead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
from datasets import IterableDataset

from packmamba.errors import UsageError


class Stream(ABC):
    """The documents of a source, shard after shard."""

    @property
    @abstractmethod
    def num_shards(self) -> int:
        """Parts that may be read in any order."""

    @abstractmethod
    def tables(self, shards: Sequence[int], skip: int = 0) -> Iterator[pa.Table]:
        """The documents of the shards in this order, a few at a time, without the first `skip` of them.

        Raises UsageError for rows that cannot be read.
        """


@dataclass(frozen=True)
class TableStream(Stream):
    """Rows of a table; a shard is a file, or a part of the hub's data set that is stored as one."""

    dataset: IterableDataset
    """The table, and only those of its columns that are documents."""
    columns: dict[str, str]
    """Their names, and what `Source.load` calls them."""
    origin: str
    """What errors call the source."""
    fault: Callable[[], str | None]
    """Called after a row could not be read: names the row and its fault, or None where it finds none."""

    @property
    def num_shards(self) -> int:
        return self.dataset.num_shards

    def tables(self, shards: Sequence[int], skip: int = 0) -> Iterator[pa.Table]:
        try:
            for shard in shards:
                part = self.dataset.shard(self.num_shards, shard) if self.num_shards > 1 else self.dataset
                for table in cast(Iterator[pa.Table], part.with_format("arrow").iter(batch_size=1000)):
                    skipped = min(skip, len(table))
                    skip -= skipped
                    if skipped < len(table):
                        # Not `IterableDataset.rename_columns`: it fails where the first rows have no value.
                        kept = table.slice(skipped).select(list(self.columns))
                        yield kept.rename_columns(list(self.columns.values()))
        except (ValueError, EOFError) as error:
            raise UsageError(f"cannot read {self.fault() or f'{self.origin}: {error}'}") from error


_DRAWS = 1000
"""Draws at a time, as many as `datasets.interleave_datasets` makes: it draws the same."""


@dataclass(frozen=True)
class MixedStream(Stream):
    """Several streams; each next document comes from one that is drawn. Gives what `interleave_datasets` gives."""

    parts: list[Stream]
    """The streams that are mixed; the shards of each are read as they come."""
    probabilities: list[float]
    """How often each is drawn."""
    repeats: bool
    """False: it ends with the last document of the part that runs out first. True: when all have run out at least once;
    those that have begin again."""
    seed: int

    @property
    def num_shards(self) -> int:
        return 1

    def tables(self, shards: Sequence[int], skip: int = 0) -> Iterator[pa.Table]:
        generator = np.random.default_rng(self.seed)
        readers = [_Reader(part, self.repeats) for part in self.parts]
        begin, end = 0, None
        while end is None:
            draws = generator.choice(len(readers), size=_DRAWS, p=self.probabilities)
            places = [np.flatnonzero(draws == part) for part in range(len(readers))]
            taken = [reader.take(place.size) for reader, place in zip(readers, places, strict=True)]
            for reader, place in zip(readers, places, strict=True):
                if reader.length is not None and reader.end is None:
                    # The place of the last document of its first pass, counted from the beginning of the mixture.
                    reader.end = begin + int(place[reader.length - (reader.drawn - place.size) - 1])
            ends = [reader.end for reader in readers if reader.end is not None]
            if len(ends) == len(readers) if self.repeats else ends:
                end = (max if self.repeats else min)(ends) + 1
            stop = _DRAWS if end is None else end - begin
            kept = [int((place < stop).sum()) for place in places]
            order = np.concatenate([place[:count] for place, count in zip(places, kept, strict=True)])
            if skip < stop:
                rows = [table.slice(0, count) for table, count in zip(taken, kept, strict=True)]
                mixed = pa.concat_tables(rows, promote_options="permissive").take(np.argsort(order))
                yield mixed.slice(max(0, skip))
            skip = max(0, skip - stop)
            begin += _DRAWS


class _Reader:
    """Takes documents from a stream, so many at a time."""

    def __init__(self, stream: Stream, repeats: bool) -> None:
        self.drawn = 0
        """Documents that were asked for."""
        self.length: int | None = None
        """Documents of the stream, as soon as the last of them was taken."""
        self.end: int | None = None
        """Where in the mixture that one is."""
        self._stream = stream
        self._repeats = repeats
        self._read = 0
        self._open()

    def _open(self) -> None:
        self._tables = (table for table in self._stream.tables(range(self._stream.num_shards)) if len(table))
        self._next = next(self._tables, None)
        if self._next is None:
            raise UsageError("a source of a mixture has no document; each needs at least one")

    def take(self, count: int) -> pa.Table:
        """The next documents; fewer where they have run out and do not begin again."""
        self.drawn += count
        assert self._next is not None
        taken = [self._next.slice(0, 0)]
        while count and self._next is not None:
            taken.append(self._next.slice(0, count))
            count -= len(taken[-1])
            self._read += len(taken[-1])
            self._next = self._next.slice(len(taken[-1]))
            if not len(self._next):
                self._next = next(self._tables, None)
            if self._next is None:
                self.length = self.length or self._read
                if self._repeats:
                    self._open()
        return pa.concat_tables(taken, promote_options="permissive")
