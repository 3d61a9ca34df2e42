"""Where documents come from. Every source loads as a `datasets.Dataset` with one column, `text`, one row a document."""

from __future__ import annotations

import ast
import glob
import logging
import os
import sys
import sysconfig
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import datasets
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetGenerationError

from packmamba.data.cache import key_of, new_folder, progress_bar

_log = logging.getLogger(__name__)


class Source(ABC):
    """Some documents. Sources are small frozen descriptions; nothing is read before `load`."""

    @abstractmethod
    def load(self, cache_dir: Path) -> Dataset:
        """The documents: one string column, `text`, at least one row. What has to be built is kept in `cache_dir`.

        Raises FileNotFoundError for a path or pattern that matches nothing, ValueError for a missing column (named with
        those there are), a column that is not text, or no document at all.
        """


def _text_only(dataset: Dataset, column: str, origin: str) -> Dataset:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PythonDocs(Source):
    """Documentation that comes with CPython: the language reference's topics and the standard library's docstrings.

    Works offline, about 8,300 documents and 2.2 MB of prose and code: half are shorter than 100 characters, the longest
    has 62,000. The files are parsed, not imported, and documents that occur twice are kept once, so the same Python
    installation always gives the same documents in the same order.
    """

    def load(self, cache_dir: Path) -> Dataset:
        library = Path(sysconfig.get_path("stdlib"))
        files = sorted(
            path for path in library.rglob("*.py") if not _NOT_LIBRARY & set(path.parts[len(library.parts) :])
        )
        if not files:
            raise FileNotFoundError(f"no .py file in {library}: this Python has no source of its standard library")
        stamps = [(str(path.relative_to(library)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        folder = cache_dir / "python-docs" / key_of(sys.version, stamps)
        if not folder.exists():
            documents = _python_documents(files)
            with new_folder(folder) as temporary:
                Dataset.from_dict({"text": documents}).save_to_disk(temporary)
            _log.info("collected %d documents of Python %s", len(documents), sys.version.split()[0])
        dataset = datasets.load_from_disk(str(folder))
        assert isinstance(dataset, Dataset)
        return _text_only(dataset, "text", "PythonDocs")


_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def _python_documents(files: list[Path]) -> list[str]:
    from pydoc_data.topics import topics

    documents = dict.fromkeys(topics[name].strip() for name in sorted(topics))
    with progress_bar() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own files hold escapes that newer Pythons warn about
        for path in progress.track(files, description="Collecting Python's documentation"):
            documents.update(dict.fromkeys(text.strip() for text in _docstrings(ast.parse(path.read_bytes()))))
    documents.pop("", None)
    return list(documents)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module and everything defined in it, in the order of the file."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _docstrings(child)


FileFormat = Literal["auto", "json", "csv", "parquet", "arrow", "text"]

_FORMATS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".lz4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Files(Source):
    """Local files: JSON (lines or an array), CSV, Parquet, Arrow or plain text, compressed ones too."""

    paths: list[str]
    """Files or glob patterns (`**` reaches into folders). The order given is kept; what a pattern matches is sorted."""
    column: str = "text"
    """The column that holds the documents; plain text has only `text`."""
    format: FileFormat = "auto"
    """`auto` goes by the file name's ending."""
    text_document: Literal["file", "paragraph", "line"] = "file"
    """What is one document of a plain text file: the whole file, or each paragraph or line."""

    def load(self, cache_dir: Path) -> Dataset:
        known = {"format": get_args(FileFormat), "text_document": tuple(_SAMPLE_BY)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; available: {', '.join(values)}")
        files = [file for pattern in self.paths for file in _matching(pattern)]
        if not files:
            raise ValueError("Files.paths is empty; name at least one file")
        name = f"the files {', '.join(self.paths)}"
        if not any(os.path.getsize(file) for file in files):
            raise ValueError(f"{name} are empty; there has to be at least one document")
        kind = _format_of(files) if self.format == "auto" else self.format
        options: dict[str, Any] = {"sample_by": _SAMPLE_BY[self.text_document]} if kind == "text" else {}
        try:
            builder = datasets.load_dataset_builder(
                kind, data_files=files, cache_dir=str(cache_dir / "datasets"), **options
            )
            builder.download_and_prepare()
        except DatasetGenerationError as error:
            raise ValueError(f"cannot read {name}: {error.__cause__ or error}") from error
        if not builder.info.splits or not builder.info.splits["train"].num_examples:
            raise ValueError(f"{name} hold no row; there has to be at least one document")
        dataset = builder.as_dataset(split="train")
        assert isinstance(dataset, Dataset)
        return _text_only(dataset, self.column, name)


_SAMPLE_BY = {"file": "document", "paragraph": "paragraph", "line": "line"}


def _matching(pattern: str) -> list[str]:
    pattern = os.path.expanduser(pattern)
    found = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    if not found:
        raise FileNotFoundError(f"no file matches {pattern!r} (looked from {os.getcwd()})")
    return [os.path.abspath(file) for file in found]


def _format_of(files: list[str]) -> str:
    kinds: dict[str, str] = {}
    for file in files:
        stem, ending = os.path.splitext(file)
        if ending in _COMPRESSIONS:
            ending = os.path.splitext(stem)[1]
        if ending.lower() not in _FORMATS:
            raise ValueError(
                f"cannot tell the format of {file!r} from its ending; known: {', '.join(_FORMATS)}; or set format"
            )
        kinds.setdefault(_FORMATS[ending.lower()], file)
    if len(kinds) > 1:
        raise ValueError(f"files of one source must have one format, got {kinds}; set format, or convert them")
    return next(iter(kinds))


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFolder(Source):
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""

    path: str
    """The folder."""
    column: str = "text"
    """The column that holds the documents."""
    split: str | None = None
    """Which split, if the folder holds several."""

    def load(self, cache_dir: Path) -> Dataset:
        folder = os.path.expanduser(self.path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"there is no folder {folder!r}; DatasetFolder reads what save_to_disk has written")
        try:
            dataset = datasets.load_from_disk(folder)
        except IndexError as error:  # what datasets raises for a table without a single row
            raise ValueError(f"the folder {folder!r} is empty; it needs at least one document") from error
        if isinstance(dataset, DatasetDict):
            if self.split not in dataset:
                raise ValueError(f"{folder!r} has no split {self.split!r}; its splits: {', '.join(map(str, dataset))}")
            dataset = dataset[self.split]
        elif self.split is not None:
            raise ValueError(f"{folder!r} holds one dataset without splits; leave split unset, got {self.split!r}")
        return _text_only(dataset, self.column, f"the folder {folder!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset(Source):
    """A dataset of the Hugging Face hub. Without a network, datasets that have been downloaded before still load."""

    name: str
    """For example `roneneldan/TinyStories`."""
    column: str = "text"
    """The column that holds the documents."""
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
        return _text_only(dataset, self.column, f"the dataset {self.name!r}")
