"""Datasets saved to disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict

from packmamba.data.sources.base import TableSource
from packmamba.errors import MissingFileError, UsageError


@dataclass(frozen=True, kw_only=True)
class DatasetFolder(TableSource):
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""

    path: str
    """The folder."""
    split: str | None = None
    """Which split, if the folder holds several."""

    def load(self, cache_dir: Path) -> Dataset:
        folder = os.path.expanduser(self.path)
        if not os.path.isdir(folder):
            raise MissingFileError(f"there is no folder {folder!r}; DatasetFolder reads what save_to_disk has written")
        try:
            dataset = datasets.load_from_disk(folder)
        except IndexError as error:  # what datasets raises for a table without a single row
            raise UsageError(f"the folder {folder!r} is empty; it needs at least one document") from error
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{folder!r} holds no dataset; DatasetFolder reads what save_to_disk has written"
            ) from error
        if isinstance(dataset, DatasetDict):
            if self.split not in dataset:
                raise UsageError(f"{folder!r} has no split {self.split!r}; its splits: {', '.join(map(str, dataset))}")
            dataset = dataset[self.split]
        elif self.split is not None:
            raise UsageError(f"{folder!r} holds one dataset without splits; leave split unset, got {self.split!r}")
        return self.documents(dataset, f"the folder {folder!r}")
