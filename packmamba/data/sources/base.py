"""What a source is.

Sources are frozen dataclasses without slots: `slots=True` makes every class twice, and the command line's parser, which
looks sources up among the subclasses, would find both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from datasets import Dataset


class Source(ABC):
    """Some documents. Sources are small frozen descriptions; nothing is read before `load`."""

    @abstractmethod
    def load(self, cache_dir: Path) -> Dataset:
        """The documents: one string column, `text`, at least one row. What has to be built is kept in `cache_dir`.

        Raises FileNotFoundError for a path or pattern that matches nothing, ValueError for a missing column (named with
        those there are), a column that is not text, or no document at all.
        """


def text_only(dataset: Dataset, column: str, origin: str) -> Dataset:
    """The dataset with `column` alone, as `text`."""
    if column not in dataset.column_names:
        raise ValueError(f"{origin} has no column {column!r}; its columns: {', '.join(dataset.column_names)}")
    if len(dataset) == 0:
        raise ValueError(f"{origin} is empty; it needs at least one document")
    dtype = getattr(dataset.features[column], "dtype", type(dataset.features[column]).__name__)
    if dtype not in ("string", "large_string"):
        raise ValueError(f"column {column!r} of {origin} holds {dtype}, not text; choose a column of strings")
    dataset = dataset.select_columns([column])
    return dataset if column == "text" else dataset.rename_column(column, "text")
