"""Datasets of the hub: what is asked for, and what is said without a network."""

from __future__ import annotations

import datasets
import huggingface_hub.constants
import pytest
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
    assert asked == {"name": "someone/stories", "config": "en", "split": "train[:1%]", "revision": "abc"}


def test_a_hub_dataset_without_network_names_the_offline_default(monkeypatch, tmp_path, cache):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"'someone/stories'.*offline default PythonDocs"):
        HubDataset(name="someone/stories").load(cache)
