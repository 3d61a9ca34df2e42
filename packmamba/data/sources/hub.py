"""Datasets of the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets import Dataset

from packmamba.data.sources.base import TableSource


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

    def load(self, cache_dir: Path) -> Dataset:
        try:
            dataset = datasets.load_dataset(self.name, self.config, split=self.split, revision=self.revision)
        except ConnectionError as error:
            raise ConnectionError(
                f"cannot reach the hub for dataset {self.name!r} ({error}), and it is not in the local cache; "
                "use local files (Files, DatasetFolder), or the offline default PythonDocs"
            ) from error
        assert isinstance(dataset, Dataset)
        return self.documents(dataset, f"the dataset {self.name!r}")
