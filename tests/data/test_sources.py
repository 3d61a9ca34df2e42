"""Every source loads as one column of text, or says what is wrong with it."""

from __future__ import annotations

import gzip
import sys
import time

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from packmamba.data.sources import DatasetFolder, Files, HubDataset, PythonDocs


def test_python_docs_are_thousands_of_different_documents_of_skewed_length(python_docs):
    dataset, _ = python_docs
    texts = dataset["text"][:]
    lengths = np.array([len(text) for text in texts])
    assert dataset.column_names == ["text"]
    assert len(texts) > 7000
    assert lengths.sum() > 1_800_000
    assert np.median(lengths) < 200
    assert lengths.max() > 20_000
    assert len(set(texts)) == len(texts), "a document occurs twice"
    assert all(text and text == text.strip() for text in texts)
    assert any("Returns a new subclass of tuple with named fields" in text for text in texts)
    assert any(text.startswith('The "with" statement') for text in texts)


def test_python_docs_are_the_same_again_and_come_from_the_cache(python_docs, tmp_path, monkeypatch):
    dataset, cache = python_docs
    fresh = PythonDocs().load(tmp_path)
    assert fresh["text"][:] == dataset["text"][:]
    monkeypatch.setattr("packmamba.data.sources._python_documents", lambda files: pytest.fail("collected again"))
    started = time.perf_counter()
    again = PythonDocs().load(cache)
    assert time.perf_counter() - started < 2
    assert again._fingerprint == dataset._fingerprint


def test_python_docs_do_not_import_what_they_read(python_docs):
    assert "antigravity" not in sys.modules
    assert "this" not in sys.modules


def test_python_without_its_sources_is_an_error_that_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no .py file in {tmp_path}"):
        PythonDocs().load(tmp_path / "cache")


def test_json_lines_load_with_the_named_column(write_jsonl, cache):
    path = write_jsonl([{"body": "first", "n": 1}, {"body": "second", "n": 2}])
    dataset = Files(paths=[path], column="body").load(cache)
    assert dataset.column_names == ["text"]
    assert dataset["text"][:] == ["first", "second"]


def test_every_file_format_loads(tmp_path, cache):
    table = pa.table({"text": ["äöü", "b\nc"]})
    (tmp_path / "a.json").write_text('[{"text": "äöü"}, {"text": "b\\nc"}]')
    (tmp_path / "a.csv").write_text('text\näöü\n"b\nc"\n')
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "äöü"}\n{"text": "b\\nc"}\n')
    for name in ("a.json", "a.csv", "a.parquet", "a.arrow", "b.jsonl.gz"):
        assert Files(paths=[str(tmp_path / name)]).load(cache)["text"][:] == ["äöü", "b\nc"], name


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["one\ntwo\n\nthree\n", "four"]),
        ("paragraph", ["one\ntwo", "three\n", "four"]),
        ("line", ["one", "two", "", "three", "four"]),
    ],
)
def test_plain_text_is_a_document_a_file_paragraph_or_line(tmp_path, cache, unit, expected):
    (tmp_path / "1.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "2.txt").write_text("four")
    assert Files(paths=[str(tmp_path / "*.txt")], text_document=unit).load(cache)["text"][:] == expected


def test_globs_reach_into_folders_and_are_sorted(tmp_path, cache):
    for name in ("b/2.txt", "a/3.txt", "a/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    dataset = Files(paths=[str(tmp_path / "**" / "*.txt")]).load(cache)
    assert dataset["text"][:] == ["a/1.txt", "a/3.txt", "b/2.txt"]


def test_a_changed_file_is_read_again(write_jsonl, cache):
    assert Files(paths=[write_jsonl(["old"])]).load(cache)["text"][:] == ["old"]
    assert Files(paths=[write_jsonl(["brand", "new"])]).load(cache)["text"][:] == ["brand", "new"]


CONTENTS = {
    "good.jsonl": '{"text": "a", "n": 1}\n',
    "good.csv": "text\na\n",
    "empty.jsonl": "",
    "header.csv": "text,n\n",
    "corrupt.jsonl": '{"text": "a"}\n{"text": \n',
    "what.xyz": "a",
}
BAD_FILES = {
    "missing-file": (["nothing-*.jsonl"], {}, FileNotFoundError, r"no file matches '.*nothing-\*\.jsonl'"),
    "missing-column": (["good.jsonl"], {"column": "body"}, ValueError, "no column 'body'; its columns: text, n"),
    "not-text": (["good.jsonl"], {"column": "n"}, ValueError, r"column 'n' of .*good\.jsonl holds int64, not text"),
    "empty-file": (["empty.jsonl"], {}, ValueError, r"empty\.jsonl are empty"),
    "no-row": (["header.csv"], {}, ValueError, r"header\.csv hold no row"),
    "corrupt": (["corrupt.jsonl"], {}, ValueError, r"cannot read .*corrupt\.jsonl.*JSON parse error"),
    "unknown-ending": (["what.xyz"], {}, ValueError, r"format of '.*what\.xyz'.*known: \.json, .*or set format"),
    "mixed": (["good.jsonl", "good.csv"], {}, ValueError, r"one format, got .*good\.jsonl.*good\.csv"),
    "unknown-format": (["good.csv"], {"format": "xml"}, ValueError, "unknown format 'xml'; available: auto, json"),
    "unknown-unit": (["good.csv"], {"text_document": "word"}, ValueError, "unknown text_document 'word'"),
    "no-path": ([], {}, ValueError, "paths is empty"),
}


@pytest.mark.parametrize(("names", "options", "error", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_cannot_be_used_say_why(tmp_path, cache, names, options, error, message):
    for name, text in CONTENTS.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        Files(paths=[str(tmp_path / name) for name in names], **options).load(cache)


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
    with pytest.raises(FileNotFoundError, match="is neither a `Dataset`"):
        DatasetFolder(path=str(tmp_path)).load(cache)
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds one dataset without splits; leave split unset, got 'train'"):
        DatasetFolder(path=str(tmp_path / "saved"), split="train").load(cache)
    Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"folder '.*empty' is empty"):
        DatasetFolder(path=str(tmp_path / "empty")).load(cache)


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
