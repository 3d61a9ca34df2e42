"""Made-up documents, the same for the same seed: tasks that only memory solves, and lengths that follow a distribution.

All of it is ASCII, so that `ByteTokenizer` makes one token of each character.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters, ascii_lowercase, digits

import numpy as np
from datasets import Dataset

from packmamba.data.cache import key_of
from packmamba.data.lengths import sample_histogram, sample_lengths
from packmamba.data.sources.base import Source, stored_once
from packmamba.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SyntheticSource(Source):
    """Documents made from random numbers, and kept."""

    num_documents: int = 10_000
    """How many documents there are."""
    seed: int = 0
    """Another seed, other documents."""

    def load(self, cache_dir: Path) -> Dataset:
        if self.num_documents < 1:
            raise UsageError(f"{type(self).__name__}.num_documents must be at least 1, got {self.num_documents}")
        self.check()
        folder = cache_dir / "synthetic" / key_of(self, self.depends_on())
        return stored_once(folder, lambda: self.texts(np.random.default_rng(self.seed)))

    def check(self) -> None:
        """Raises UsageError for a field out of range."""

    def depends_on(self) -> str:
        """What the documents depend on, beside the fields."""
        return ""

    @abstractmethod
    def texts(self, generator: np.random.Generator) -> list[str]:
        """The documents."""


@dataclass(frozen=True, kw_only=True)
class Recall(SyntheticSource):
    """Associative recall: keys with their values, `?`, then the same keys in another order, each with its value again.

    `b4x7k0?k0b4x7`: nothing foretells keys and values before the `?`; behind it, every value follows from memory. A
    model without memory cannot do better there than guess one digit of ten.
    """

    max_pairs: int = 16
    """Each document has 1 to this many keys (at most 52, a letter each), so 5 to 4 · max_pairs + 1 characters."""

    def check(self) -> None:
        if not 1 <= self.max_pairs <= len(ascii_letters):
            raise UsageError(f"Recall.max_pairs must be between 1 and {len(ascii_letters)}, got {self.max_pairs}")

    def texts(self, generator: np.random.Generator) -> list[str]:
        texts = []
        for count in generator.integers(1, self.max_pairs + 1, self.num_documents).tolist():
            keys = generator.permutation(len(ascii_letters))[:count]
            values = generator.integers(len(digits), size=count)
            pairs = [ascii_letters[key] + digits[value] for key, value in zip(keys, values, strict=True)]
            asked = [pairs[index] for index in generator.permutation(count)]
            texts.append(f"{''.join(pairs)}?{''.join(asked)}")
        return texts


@dataclass(frozen=True, kw_only=True)
class Copy(SyntheticSource):
    """Copying: random letters, `|`, and the same letters again, which follow from memory alone: `qvhe|qvhe`."""

    max_length: int = 32
    """Each document copies 1 to this many letters, so it has 3 to 2 · max_length + 1 characters."""

    def check(self) -> None:
        if self.max_length < 1:
            raise UsageError(f"Copy.max_length must be at least 1, got {self.max_length}")

    def texts(self, generator: np.random.Generator) -> list[str]:
        lengths = generator.integers(1, self.max_length + 1, self.num_documents)
        return [f"{text}|{text}" for text in _random_texts(generator, lengths, ascii_lowercase)]


@dataclass(frozen=True, kw_only=True)
class RandomLengths(SyntheticSource):
    """Documents of random letters and spaces whose lengths follow a distribution, to try out packing and speed.

    A length counts characters; a tokenizer's BOS and EOS come on top.
    """

    distribution: str = "lognormal"
    """lognormal (mean 650), uniform (57 to 2048), equal (512), rows (1024), tiny (1 to 19); or a `.json` or `.csv` file
    that says how many documents have each length: `{"length": count, ...}`, or a column of lengths and one of counts.
    """

    @property
    def _from_file(self) -> bool:
        return self.distribution.endswith((".json", ".csv"))

    def depends_on(self) -> str:
        path = Path(self.distribution).expanduser()
        return hashlib.blake2b(path.read_bytes()).hexdigest() if self._from_file and path.is_file() else ""

    def texts(self, generator: np.random.Generator) -> list[str]:
        sample = sample_histogram if self._from_file else sample_lengths
        lengths = sample(self.distribution, num_documents=self.num_documents, seed=self.seed)
        return _random_texts(generator, lengths, ascii_lowercase + " ")


def _random_texts(generator: np.random.Generator, lengths: np.ndarray, alphabet: str) -> list[str]:
    letters = np.frombuffer(alphabet.encode(), dtype=np.uint8)
    ends = np.cumsum(lengths)
    everything = letters[generator.integers(letters.size, size=int(ends[-1]))].tobytes().decode()
    return [everything[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
