"""Local files, by path, folder or glob pattern."""

from __future__ import annotations

import glob
import logging
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

_log = logging.getLogger(__name__)

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

    paths: list[str] | str
    """Files, folders or glob patterns (`**` reaches into folders); one alone needs no list. The order given is kept;
    what a pattern matches is sorted. A folder stands for the files below it whose ending says that they hold documents,
    or for all of them where `format` is set; hidden ones are left out."""
    format: FileFormat = "auto"
    """`auto` goes by the file name's ending."""
    text_document: Literal["file", "paragraph", "line"] = "file"
    """What is one document of a plain text file: the whole file, or each paragraph or line."""
    streaming: bool = False
    """Read documents while training goes on, instead of converting and tokenising all of them first."""

    def __post_init__(self) -> None:
        if isinstance(self.paths, str | os.PathLike):
            object.__setattr__(self, "paths", [os.fspath(self.paths)])

    def load(self, cache_dir: Path) -> Dataset:
        kind, files, options = self._reader()
        try:
            builder = datasets.load_dataset_builder(
                kind, data_files=_escaped(files), cache_dir=str(cache_dir / "datasets"), **options
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
            dataset = datasets.load_dataset(kind, data_files=_escaped(files), split="train", streaming=True, **options)
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
        files = [file for pattern in self.paths for file in self._matching(pattern)]
        if not files:
            raise UsageError("Files.paths is empty; name at least one file")
        if not any(os.path.getsize(file) for file in files):
            raise UsageError(f"{self._name} are empty; there has to be at least one document")
        kind = _format_of(files) if self.format == "auto" else self.format
        return kind, files, {"sample_by": _SAMPLE_BY[self.text_document]} if kind == "text" else {}

    def _matching(self, pattern: str) -> list[str]:
        """The files that a path or pattern stands for. Raises MissingFileError where there are none."""
        pattern = os.path.expanduser(pattern)
        if os.path.isdir(pattern):
            return _below(pattern, known_alone=self.format == "auto")
        is_file = os.path.isfile(pattern)
        found = [pattern] if is_file else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
        if not found:
            raise MissingFileError(f"no file matches {pattern!r} (looked from {os.getcwd()})")
        return [os.path.abspath(file) for file in found]


_SAMPLE_BY = {"file": "document", "paragraph": "paragraph", "line": "line"}


def _below(folder: str, *, known_alone: bool) -> list[str]:
    """The files in a folder and its folders, sorted, without hidden ones. known_alone: those alone whose ending is
    known; says on the log how many others there are."""
    for name in ("dataset_info.json", "dataset_dict.json"):
        if os.path.isfile(os.path.join(folder, name)):
            raise UsageError(f"the folder {folder!r} holds {name}, as save_to_disk writes it: read it by DatasetFolder")
    found = sorted(glob.glob(os.path.join(glob.escape(folder), "**"), recursive=True))
    files = [os.path.abspath(file) for file in found if os.path.isfile(file)]
    known = [file for file in files if not known_alone or _ending(file) in _FORMATS]
    if not known:
        raise MissingFileError(
            f"the folder {folder!r} holds no file of documents ({len(files)} others); known endings: "
            f"{', '.join(_FORMATS)}; or set format"
        )
    if others := sorted(set(files) - set(known)):
        _log.warning(
            "%d of the %d files in %r have an ending that is not known, %r for one; they are left out",
            *(len(others), len(files), folder, os.path.relpath(others[0], folder)),
        )
    return known


def _escaped(files: list[str]) -> list[str]:
    """Paths that `datasets`, which takes them for patterns, finds under their own name."""
    return [glob.escape(file) for file in files]


def _ending(file: str) -> str:
    """A file's ending, in lower case; that before the compression's."""
    stem, ending = os.path.splitext(file)
    return (os.path.splitext(stem)[1] if ending in _COMPRESSIONS else ending).lower()


def _format_of(files: list[str]) -> str:
    kinds: dict[str, str] = {}
    for file in files:
        if (ending := _ending(file)) not in _FORMATS:
            raise UsageError(
                f"cannot tell the format of {file!r} from its ending; known: {', '.join(_FORMATS)}; or set format"
            )
        kinds.setdefault(_FORMATS[ending], file)
    if len(kinds) > 1:
        raise UsageError(f"files of one source must have one format, got {kinds}; set format, or convert them")
    return next(iter(kinds))
