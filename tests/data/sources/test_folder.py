"""Datasets saved to disk load as one column of text, or say what is wrong with them."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict

from packmamba.data.sources import DatasetFolder


def test_a_saved_dataset_loads_from_its_folder(tmp_path, cache):
    Dataset.from_dict({"body": ["a", "b"], "n": [1, 2]}).save_to_disk(tmp_path / "saved")
    assert DatasetFolder(path=str(tmp_path / "saved"), column="body").load(cache)["text"][:] == ["a", "b"]


def test_a_saved_dataset_dict_needs_a_split(tmp_path, cache):
    splits = {name: Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert DatasetFolder(path=str(tmp_path / "saved"), split="test").load(cache)["text"][:] == ["test"]
    for split in (None, "dev"):
        with pytest.raises(ValueError, match=rf"no split {split!r}; its splits: train, test"):
            DatasetFolder(path=str(tmp_path / "saved"), split=split).load(cache)


def test_folders_that_cannot_be_used_say_why(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*missing'"):
        DatasetFolder(path=str(tmp_path / "missing")).load(cache)
    with pytest.raises(FileNotFoundError, match="holds no dataset; DatasetFolder reads"):
        DatasetFolder(path=str(tmp_path)).load(cache)
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds one dataset without splits; leave split unset, got 'train'"):
        DatasetFolder(path=str(tmp_path / "saved"), split="train").load(cache)
    Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"folder '.*empty' is empty"):
        DatasetFolder(path=str(tmp_path / "empty")).load(cache)
