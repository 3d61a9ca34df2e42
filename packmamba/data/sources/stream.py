"""Documents that are read as they are needed, instead of all of them ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
from datasets import IterableDataset


@dataclass(frozen=True)
class Stream:
    """The documents of a source, shard after shard; a shard is a file, or what the hub stores as one."""

    dataset: IterableDataset
    """The table, and only those of its columns that are documents."""
    columns: dict[str, str]
    """Their names, and what `Source.load` calls them."""
    origin: str
    """What errors call the source."""
    fault: Callable[[], str | None]
    """Called after something could not be read: says what and where, or None where it finds nothing."""

    @property
    def num_shards(self) -> int:
        return self.dataset.num_shards

    def tables(self, shards: Sequence[int], skip: int = 0) -> Iterator[pa.Table]:
        """The documents of the shards in this order, a few at a time, without the first `skip` of them.

        Raises ValueError for rows that cannot be read.
        """
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
            raise ValueError(f"cannot read {self.fault() or f'{self.origin}: {error}'}") from error
