"""Local files, by path or glob pattern."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import datasets
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetGenerationError

from packmamba.data.sources.base import TableSource
from packmamba.data.sources.diagnose import find_fault
from packmamba.data.sources.stream import Stream
from packmamba.errors import MissingFileError, UsageError

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


@dataclass(frozen=True, kw_only=True)
class Files(TableSource):
    """Local files: JSON (lines or an array), CSV, Parquet, Arrow or plain text, compressed ones too."""

    paths: list[str]
    """Files or glob patterns (`**` reaches into folders). The order given is kept; what a pattern matches is sorted."""
    format: FileFormat = "auto"
    """`auto` goes by the file name's ending."""
    text_document: Literal["file", "paragraph", "line"] = "file"
    """What is one document of a plain text file: the whole file, or each paragraph or line."""
    streaming: bool = False
    """Read documents while training goes on, instead of converting and tokenising all of them first."""

    def load(self, cache_dir: Path) -> Dataset:
        kind, files, options = self._reader()
        try:
            builder = datasets.load_dataset_builder(
                kind, data_files=files, cache_dir=str(cache_dir / "datasets"), **options
            )
            builder.download_and_prepare()
        except (DatasetGenerationError, ValueError, EOFError) as error:
            fault = find_fault(files, kind, {}, options) or f"{self._name}: {error.__cause__ or error}"
            raise UsageError(f"cannot read {fault}") from error
        if not builder.info.splits or not builder.info.splits["train"].num_examples:
            raise UsageError(f"{self._name} hold no row; there has to be at least one document")
        dataset = builder.as_dataset(split="train")
        assert isinstance(dataset, Dataset)
        try:
            return self.documents(dataset, self._name)
        except ValueError as error:
            fault = find_fault(files, kind, self.columns(), options) if kind == "json" else None
            raise UsageError(f"{error}; {fault}" if fault else str(error)) from error

    def stream(self) -> Stream:
        kind, files, options = self._reader()

        def fault() -> str | None:
            return find_fault(files, kind, {}, options)

        try:
            dataset = datasets.load_dataset(kind, data_files=files, split="train", streaming=True, **options)
        except (ValueError, EOFError) as error:
            raise UsageError(f"cannot read {fault() or f'{self._name}: {error}'}") from error
        except StopIteration as error:  # what datasets raises where it looks for a first row
            raise UsageError(f"{self._name} hold no row; there has to be at least one document") from error
        assert isinstance(dataset, IterableDataset)
        return self.documents_of_stream(dataset, self._name, fault)

    @property
    def _name(self) -> str:
        """What errors call the files."""
        return f"the files {', '.join(self.paths)}"

    def _reader(self) -> tuple[str, list[str], dict[str, Any]]:
        """What `datasets` calls the format, the files, and the format's options."""
        known = {"format": get_args(FileFormat), "text_document": tuple(_SAMPLE_BY)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; available: {', '.join(values)}")
        files = [file for pattern in self.paths for file in _matching(pattern)]
        if not files:
            raise UsageError("Files.paths is empty; name at least one file")
        if not any(os.path.getsize(file) for file in files):
            raise UsageError(f"{self._name} are empty; there has to be at least one document")
        kind = _format_of(files) if self.format == "auto" else self.format
        return kind, files, {"sample_by": _SAMPLE_BY[self.text_document]} if kind == "text" else {}


_SAMPLE_BY = {"file": "document", "paragraph": "paragraph", "line": "line"}


def _matching(pattern: str) -> list[str]:
    pattern = os.path.expanduser(pattern)
    found = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    if not found:
        raise MissingFileError(f"no file matches {pattern!r} (looked from {os.getcwd()})")
    return [os.path.abspath(file) for file in found]


def _format_of(files: list[str]) -> str:
    kinds: dict[str, str] = {}
    for file in files:
        stem, ending = os.path.splitext(file)
        if ending in _COMPRESSIONS:
            ending = os.path.splitext(stem)[1]
        if ending.lower() not in _FORMATS:
            raise UsageError(
                f"cannot tell the format of {file!r} from its ending; known: {', '.join(_FORMATS)}; or set format"
            )
        kinds.setdefault(_FORMATS[ending.lower()], file)
    if len(kinds) > 1:
        raise UsageError(f"files of one source must have one format, got {kinds}; set format, or convert them")
    return next(iter(kinds))
