"""Where in a user's files the trouble is: looked for once reading has failed, when the line matters more than time."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, cast

import datasets
import fsspec


def find_fault(files: Sequence[str], kind: str, columns: Mapping[str, str], options: dict[str, Any]) -> str | None:
    """The first file that cannot be read, where in it and why, or None if each can be read by itself.

    kind: what `datasets` calls the format. columns: those to be read, and what `Source.load` calls them; what they hold
    is looked at in JSON alone. options: of the format.
    """
    for file in files:
        fault = _json_fault(file, columns) if kind == "json" else _other_fault(file, kind, options)
        if fault is not None:
            return f"{file}{fault}"
    return None


def _opened(file: str) -> AbstractContextManager[BinaryIO]:
    """The content of a file, compressed or not."""
    return cast(AbstractContextManager[BinaryIO], fsspec.open(file, "rb", compression="infer"))


def _json_fault(file: str, columns: Mapping[str, str]) -> str | None:
    try:
        with _opened(file) as stream:
            return _array_fault(stream.read(), columns) if _begins_with_bracket(file) else _lines_fault(stream, columns)
    except (OSError, EOFError) as error:  # of a compressed file
        return f": {error}"


def _begins_with_bracket(file: str) -> bool:
    with _opened(file) as stream:
        return stream.read(100).lstrip().startswith(b"[")


def _array_fault(content: bytes, columns: Mapping[str, str]) -> str | None:
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        return f", line {error.lineno}: not JSON: {error.msg} at column {error.colno}"
    except UnicodeDecodeError as error:
        return f": not UTF-8: {error}"
    faults = ((number, _row_fault(row, columns)) for number, row in enumerate(rows, start=1))
    return next((f", row {number}: {fault}" for number, fault in faults if fault), None)


def _lines_fault(lines: BinaryIO, columns: Mapping[str, str]) -> str | None:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fault = _row_fault(json.loads(line.rstrip()), columns)
        except json.JSONDecodeError as error:
            fault = f"not JSON: {error.msg} at column {error.colno}"
        except UnicodeDecodeError as error:
            fault = f"not UTF-8: {error.reason} at byte {error.start + 1}"
        if fault:
            return f", line {number}: {fault}"
    return None


def _row_fault(row: Any, columns: Mapping[str, str]) -> str | None:
    if not isinstance(row, dict):
        return f'expected an object, {{"name": value, ...}}, got {_shortened(row)}'
    for column, name in columns.items():
        value = row.get(column)
        fits, expected = _EXPECTED.get(name, (lambda value: isinstance(value, str), "text"))
        if value is not None and not fits(value):
            return f"{column!r} is {_shortened(value)}, not {expected}"
    return None


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) and _is_message(message) for message in value)


def _is_message(message: dict[str, Any]) -> bool:
    who, what = ("role", "content") if "role" in message else ("from", "value")
    return isinstance(message.get(who), str) and isinstance(message.get(what), str | None)


def _are_tools(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(tool, dict) for tool in value))


_EXPECTED = {
    "messages": (_are_messages, 'a list of {"role": "...", "content": "..."}'),
    "tools": (_are_tools, "a list of JSON schemas"),
}
"""What a column holds that is no text, by what `Source.load` calls it."""


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _other_fault(file: str, kind: str, options: dict[str, Any]) -> str | None:
    try:
        for _ in datasets.load_dataset(kind, data_files=[glob.escape(file)], split="train", streaming=True, **options):
            pass
    except Exception as error:
        # Whatever a reader raises for a file that it cannot read; there are as many kinds as formats.
        return f": {' '.join(str(error.__cause__ or error).split())}"
    return None
