"""What a source is, and the fields that name the columns of a table.

Sources are frozen dataclasses without slots: `slots=True` makes every class twice, and the command line's parser, which
looks sources up among the subclasses, would find both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset

from packmamba.atomic import new_folder
from packmamba.data.checksums import is_intact, seal
from packmamba.data.sources.stream import Stream, TableStream
from packmamba.errors import UsageError


class Source(ABC):
    """Some documents. Sources are small frozen descriptions; nothing is read before `load` or `stream`."""

    streaming: bool = False
    """Whether training reads the documents as it needs them. A field of the sources that can do so."""

    def __str__(self) -> str:
        """The source by the fields that are not as they are by default."""
        if not is_dataclass(self):
            return repr(self)
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @property
    def title(self) -> str:
        """The source in a picture's title: its class, and the names it has to be given: `Files: a.jsonl`."""
        required = [getattr(self, f.name) for f in fields(self) if f.default is MISSING] if is_dataclass(self) else []
        named = ", ".join(_named_in(required))
        return f"{type(self).__name__}: {named}" if named else type(self).__name__

    @property
    def repeats_documents(self) -> bool:
        """Whether a document may be more than one row, so that a part of the rows cannot be held out."""
        return False

    @abstractmethod
    def load(self, cache_dir: Path) -> Dataset:
        """The documents, one row each, at least one. What has to be built is kept in `cache_dir`.

        Plain documents are a string column `text`. Conversations are the string columns `prompt` and `completion`, or
        `messages`, lists of objects (see `text.conversation`), with `tools` where they have some. Where there are
        columns of several kinds, a row has one of them, and null in the others.

        Raises MissingFileError for a path or pattern that matches nothing, UsageError for a missing column (named with
        those there are), a column of another type, or no document at all.
        """

    def stream(self) -> Stream:
        """The documents that `load` gives, in the same order, but read while training goes on.

        Raises what `load` raises, and UsageError for a source that cannot be streamed.
        """
        raise UsageError(f"{type(self).__name__} cannot be streamed; Files, HubDataset and mixtures of them can")


def _named_in(value: Any) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Source):
        yield value.title
    elif isinstance(value, Sequence):
        for part in value:
            yield from _named_in(part)


@dataclass(frozen=True, kw_only=True)
class TableSource(Source):
    """Rows of a table, and which columns of it are the documents: `column` for plain text; or, for conversations, in
    which only the assistant's tokens are trained on, `prompt_column` and `completion_column`, or `messages_column`."""

    column: str = "text"
    """The column that holds plain documents; not looked at where one of the following is set."""
    prompt_column: str | None = None
    """Conversations of one turn: the column of what the user says. Needs completion_column too."""
    completion_column: str | None = None
    """Conversations of one turn: the column of what the assistant answers."""
    messages_column: str | None = None
    """Conversations: a column of lists of messages, each with `role` (system, user, assistant, ...) and `content`, or
    ShareGPT's `from` (system, human, gpt, tool) and `value`. A message of the assistant with `weight: 0` or
    `train: false` has no loss."""
    tools_column: str | None = None
    """Conversations: a column of the tools that they may call, which the chat template writes: lists of JSON schemas,
    or such lists as text. Needs messages_column, or prompt_column and completion_column."""

    def columns(self) -> dict[str, str]:
        """The names of the columns to read, and what `load` calls them. Raises UsageError if the fields contradict."""
        pair = (self.prompt_column, self.completion_column)
        if self.messages_column is not None and pair != (None, None):
            raise UsageError(
                "set messages_column, or prompt_column and completion_column, not both; got "
                f"messages_column={self.messages_column!r}, prompt_column={pair[0]!r}, completion_column={pair[1]!r}"
            )
        tools = {} if self.tools_column is None else {self.tools_column: "tools"}
        if self.messages_column is not None:
            return {self.messages_column: "messages"} | tools
        if pair == (None, None):
            if tools:
                raise UsageError(
                    f"tools_column={self.tools_column!r} needs conversations: set messages_column too, or prompt_column"
                    " and completion_column"
                )
            return {self.column: "text"}
        if pair[0] is None or pair[1] is None or pair[0] == pair[1]:
            raise UsageError(
                "prompt_column and completion_column must be set together, to different columns; got "
                f"prompt_column={pair[0]!r}, completion_column={pair[1]!r}"
            )
        return {pair[0]: "prompt", pair[1]: "completion"} | tools

    def documents(self, dataset: Dataset, origin: str) -> Dataset:
        """The columns of a table that are documents, named as `load` promises. origin: its name in errors."""
        columns = self.columns()
        _require_columns(columns, dataset.column_names, origin)
        if len(dataset) == 0:
            raise UsageError(f"{origin} is empty; it needs at least one document")
        for column, name in columns.items():
            _require_type(dataset.features[column], column, name, origin)
        renamed = {column: name for column, name in columns.items() if column != name}
        dataset = dataset.select_columns(list(columns))
        return dataset.rename_columns(renamed) if renamed else dataset

    def documents_of_stream(
        self, dataset: IterableDataset, origin: str, fault: Callable[[], str | None] = lambda: None
    ) -> Stream:
        """The same of a table that is read as it is needed. Its first rows tell the types of its columns. fault: looks
        for what cannot be read."""
        columns = self.columns()
        if dataset.features is None:
            dataset = dataset._resolve_features()
        assert dataset.features is not None
        _require_columns(columns, list(dataset.features), origin)
        for column, name in columns.items():
            if getattr(dataset.features[column], "dtype", None) != "null":
                _require_type(dataset.features[column], column, name, origin)
        return TableStream(dataset.select_columns(list(columns)), columns, origin, fault)


def _require_columns(columns: dict[str, str], there: list[str], origin: str) -> None:
    for column in columns:
        if column not in there:
            raise UsageError(f"{origin} has no column {column!r}; its columns: {', '.join(there)}")


def _require_type(feature: Any, column: str, name: str, origin: str) -> None:
    if name == "tools":
        item = getattr(feature, "feature", None)
        if not (_is_text(feature) or isinstance(item, dict) or _is_json(feature) or _is_json(item)):
            raise UsageError(
                f"column {column!r} of {origin} holds {_type_name(feature)}, not tools: lists of JSON schemas, or such "
                "lists as text"
            )
        return
    if name != "messages":
        if not _is_text(feature):
            raise UsageError(
                f"column {column!r} of {origin} holds {_type_name(feature)}, not text; choose a column of strings"
            )
        return
    message = getattr(feature, "feature", None)
    if _is_json(message):  # messages with other fields each: what they hold is seen when they are written out
        return
    names = next((pair for pair in _MESSAGE_FIELDS if isinstance(message, dict) and set(pair) <= set(message)), None)
    if names is None or not isinstance(message, dict):
        raise UsageError(
            f"column {column!r} of {origin} holds {_type_name(feature)}, not lists of messages; a message has a role "
            "and a content, or ShareGPT's from and value"
        )
    for field in names:
        if not _is_text(message[field]):
            raise UsageError(
                f"messages in column {column!r} of {origin} have a {field} of {_type_name(message[field])}; it must be "
                "text"
            )


_MESSAGE_FIELDS = (("role", "content"), ("from", "value"))


def _is_json(feature: Any) -> bool:
    """Whether these are objects that need not have the same fields. Older versions of `datasets` have no such type."""
    return type(feature).__name__ == "Json"


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _type_name(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def stored_once(folder: Path, build: Callable[[], Sequence[str]]) -> Dataset:
    """The texts kept in `folder`, as a dataset that is read from disk when looked at; built and saved if need be."""
    if not is_intact(folder, "Texts"):
        with new_folder(folder) as temporary, _no_progress_bar():
            Dataset.from_dict({"text": build()}).save_to_disk(temporary)
            seal(temporary)
    dataset = datasets.load_from_disk(str(folder))
    assert isinstance(dataset, Dataset)
    return dataset


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without the bar of `datasets`, which shows even where nobody looks at a terminal."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
