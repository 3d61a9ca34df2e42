"""Datasets of the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset

from packmamba.data.sources.base import TableSource
from packmamba.data.sources.stream import Stream
from packmamba.errors import UnreachableError


@dataclass(frozen=True, kw_only=True)
class HubDataset(TableSource):
    """A dataset of the Hugging Face hub. Without a network, datasets that have been downloaded before still load."""

    name: str
    """For example `roneneldan/TinyStories`."""
    config: str | None = None
    """Which configuration of the dataset, if it has several."""
    split: str = "train"
    """Which split, slices such as `train[:1%]` included."""
    revision: str | None = None
    """A branch, tag or commit; a commit keeps the data from changing under you."""

    streaming: bool = False
    """Read documents from the hub while training goes on, instead of downloading and tokenising all of them first."""

    def load(self, cache_dir: Path) -> Dataset:
        dataset = self._load(streaming=False)
        assert isinstance(dataset, Dataset)
        return self.documents(dataset, f"the dataset {self.name!r}")

    def stream(self) -> Stream:
        dataset = self._load(streaming=True)
        assert isinstance(dataset, IterableDataset)
        return self.documents_of_stream(dataset, f"the dataset {self.name!r}")

    def _load(self, *, streaming: bool) -> Any:
        try:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=streaming
            )
        except ConnectionError as error:
            raise UnreachableError(
                f"cannot reach the hub for dataset {self.name!r} ({error}), and it is not in the local cache; "
                "use local files (Files, DatasetFolder), or the offline default PythonDocs"
            ) from error
