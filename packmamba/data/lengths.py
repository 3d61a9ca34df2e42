"""Document lengths for benchmarks and tests, by the name of their distribution. Needs numpy only."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from packmamba.errors import MissingFileError, UsageError

SHORTEST, LONGEST = 57, 2048
"""Range of the log-normal and the uniform lengths, in tokens."""

EQUAL_LENGTH, ROW_LENGTH = 512, 1024
"""Every document's tokens where all are equal."""

LONGEST_TINY = 19
"""Tokens of the longest tiny document; the shortest has 1."""


def _lognormal(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.clip(generator.lognormal(np.log(495), 0.8, count), SHORTEST, LONGEST).astype(np.int64)


def _uniform(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.integers(SHORTEST, LONGEST + 1, count)


def _equal(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.full(count, EQUAL_LENGTH)


def _rows(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.full(count, ROW_LENGTH)


def _tiny(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.integers(1, LONGEST_TINY + 1, count)


SAMPLERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "lognormal": _lognormal,
    "uniform": _uniform,
    "equal": _equal,
    "rows": _rows,
    "tiny": _tiny,
}

DISTRIBUTIONS = {
    "lognormal": f"log-normal, median 495 and σ 0.8, clipped to {SHORTEST}-{LONGEST} tokens: mean about 650",
    "uniform": f"uniform over {SHORTEST}-{LONGEST} tokens",
    "equal": f"every document {EQUAL_LENGTH} tokens",
    "rows": f"every document {ROW_LENGTH:,} tokens, as the rows of an unpacked batch",
    "tiny": f"uniform over 1-{LONGEST_TINY} tokens: mean 10",
    "giant": "one document that is the whole pack",
}
"""What each name means."""


def sample_lengths(
    name: str, *, num_tokens: int | None = None, num_documents: int | None = None, seed: int = 0
) -> np.ndarray:
    """Tokens of each document, int64 (S,), the same for the same seed.

    Give either `num_tokens`, and the lengths add up to it exactly (the last document is cut to fit), or
    `num_documents`.

    >>> sample_lengths("equal", num_tokens=1200).tolist()
    [512, 512, 176]

    Raises UsageError for an unknown distribution (lists those that exist), for a size below 1, where not exactly one
    size is given, and for `giant` by `num_documents`.
    """
    if name not in DISTRIBUTIONS:
        raise UsageError(f"unknown length distribution {name!r}; available: {', '.join(DISTRIBUTIONS)}")
    if (num_tokens is None) == (num_documents is None):
        raise UsageError(
            f"give either num_tokens or num_documents, got num_tokens={num_tokens} and num_documents={num_documents}"
        )
    for label, size in (("num_tokens", num_tokens), ("num_documents", num_documents)):
        if size is not None and size < 1:
            raise UsageError(f"{label} must be at least 1, got {size}")
    if name == "giant":
        if num_tokens is None:
            raise UsageError(f"'giant' is one document: give num_tokens, not num_documents={num_documents}")
        return np.array([num_tokens], dtype=np.int64)
    generator = np.random.default_rng(seed)
    if num_documents is not None:
        return SAMPLERS[name](generator, num_documents)
    assert num_tokens is not None
    lengths = SAMPLERS[name](generator, num_tokens)  # enough, however short they are
    ends = np.cumsum(lengths)
    count = int(np.searchsorted(ends, num_tokens)) + 1
    lengths = lengths[:count]
    lengths[-1] -= ends[count - 1] - num_tokens
    return lengths


def read_histogram(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and how many documents have each, int64 (K,) both, lengths ascending.

    path: a `.json` file, `{"length": count, ...}` or `[[length, count], ...]`, or a `.csv` file of two columns, length
    and count, with or without a line of names.

    Raises MissingFileError where there is no file, UsageError for another ending, for what is not a whole number, a
    length below 1, a count below 0, a length that occurs twice (each with the entry's number), or no document at all.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f"there is no histogram file {str(path)!r}")
    if path.suffix not in (".json", ".csv"):
        raise UsageError(f"a histogram is a .json or a .csv file of lengths and counts, got {str(path)!r}")
    counts: dict[int, int] = {}
    for number, entry in enumerate(_json_entries(path) if path.suffix == ".json" else _csv_entries(path), start=1):
        length, count = _whole_numbers(entry, f"{path}, entry {number}")
        if length in counts:
            raise UsageError(f"{path}, entry {number}: the length {length} occurs a second time")
        counts[length] = count
    if not any(counts.values()):
        raise UsageError(f"the histogram {path} counts no document; it needs at least one")
    lengths = np.array(sorted(counts), dtype=np.int64)
    return lengths, np.array([counts[length] for length in lengths.tolist()], dtype=np.int64)


def _json_entries(path: Path) -> Iterable[object]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict | list):
        raise UsageError(f'{path} must hold {{"length": count, ...}} or [[length, count], ...], got {content!r}')
    return content.items() if isinstance(content, dict) else content


def _csv_entries(path: Path) -> Iterable[object]:
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    names = rows and not any(cell.strip().lstrip("-").isdigit() for cell in rows[0])
    return rows[1:] if names else rows


def _whole_numbers(entry: object, origin: str) -> tuple[int, int]:
    """The length and the count of an entry, checked."""
    try:
        if not isinstance(entry, list | tuple) or any(isinstance(value, float) for value in entry):
            raise ValueError
        length, count = map(int, entry)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{origin}: expected a length and a count, two whole numbers, got {entry!r}") from error
    if length < 1 or count < 0:
        raise UsageError(f"{origin}: a length is at least 1 and a count at least 0, got {length} and {count}")
    return length, count


def sample_histogram(path: str | Path, *, num_documents: int, seed: int = 0) -> np.ndarray:
    """Tokens of each document, int64 (S,), drawn with the frequencies of a file, the same for the same seed.

    path: see `read_histogram`, which says what is raised. num_documents: at least 1, else ValueError.
    """
    if num_documents < 1:
        raise UsageError(f"num_documents must be at least 1, got {num_documents}")
    lengths, counts = read_histogram(path)
    return np.random.default_rng(seed).choice(lengths, num_documents, p=counts / counts.sum())


def read_lengths(file: Path) -> np.ndarray:
    """The lengths in a `.npy` file or a JSON list.

    Raises FileNotFoundError, or UsageError for another kind of file, or one that does not hold integers from 1 up.
    """
    if not file.is_file():
        raise MissingFileError(f"there is no file of lengths {str(file)!r}")
    if file.suffix not in (".npy", ".json"):
        raise UsageError(f"lengths come as an array in a .npy file or a list in a .json file, got {str(file)!r}")
    try:
        lengths = np.load(file, allow_pickle=False) if file.suffix == ".npy" else np.array(json.loads(file.read_text()))
    except (ValueError, EOFError) as error:
        kind = "no array of numbers (.npy)" if file.suffix == ".npy" else f"no JSON: {error}"
        raise UsageError(f"cannot read lengths from {str(file)!r}: it is {kind}") from error
    if not isinstance(lengths, np.ndarray) or lengths.ndim != 1 or not lengths.size or lengths.dtype.kind not in "iu":
        raise UsageError(f"{str(file)!r} has to hold a list of integers, at least one, and nothing else")
    if lengths.min() < 1:
        index = int(np.argmin(lengths))
        raise UsageError(f"{str(file)!r}: document {index} has length {lengths[index]}; the least is 1 token")
    return lengths.astype(np.int64)
