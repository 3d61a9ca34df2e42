"""Datasets of the hub: what is asked for, and what is said without a network."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")

import datasets
import huggingface_hub.constants
from datasets import Dataset

from packmamba.data.sources import HubDataset


def test_a_hub_dataset_is_asked_for_by_name(monkeypatch, cache):
    asked = {}

    def load_dataset(name, config, **options):
        asked.update(name=name, config=config, **options)
        return Dataset.from_dict({"story": ["once"], "id": [1]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = HubDataset(name="someone/stories", config="en", split="train[:1%]", revision="abc", column="story")
    assert source.load(cache)["text"][:] == ["once"]
    assert asked.pop("streaming") is False
    assert asked == {"name": "someone/stories", "config": "en", "split": "train[:1%]", "revision": "abc"}


def test_a_hub_dataset_can_be_streamed(monkeypatch):
    def load_dataset(name, config, *, streaming, **options):
        assert streaming
        return Dataset.from_dict({"story": ["once", "upon", "a"], "id": [1, 2, 3]}).to_iterable_dataset(num_shards=3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    stream = HubDataset(name="someone/stories", column="story", streaming=True).stream()
    assert stream.num_shards == 3
    assert [row for table in stream.tables([2, 0, 1], skip=1) for row in table["text"].to_pylist()] == ["once", "upon"]
    with pytest.raises(ValueError, match="the dataset 'someone/stories' has no column 'text'; its columns: story, id"):
        HubDataset(name="someone/stories", streaming=True).stream()


def test_a_hub_dataset_without_network_names_the_offline_default(monkeypatch, tmp_path, cache):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"'someone/stories'.*offline default PythonDocs"):
        HubDataset(name="someone/stories").load(cache)
