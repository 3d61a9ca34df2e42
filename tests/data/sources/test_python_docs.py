"""The offline default corpus: large, skewed, always the same."""

from __future__ import annotations

import sys
import time

import pytest

pytest.importorskip("datasets")

import numpy as np

from packmamba.data.sources import PythonDocs


@pytest.mark.slow
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


@pytest.mark.slow
def test_python_docs_are_the_same_again_and_come_from_the_cache(python_docs, tmp_path, monkeypatch):
    dataset, cache = python_docs
    fresh = PythonDocs().load(tmp_path)
    assert fresh["text"][:] == dataset["text"][:]
    monkeypatch.setattr(
        "packmamba.data.sources.python_docs._python_documents", lambda files: pytest.fail("collected again")
    )
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
