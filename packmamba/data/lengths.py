"""Document lengths for benchmarks and tests, by the name of their distribution. Needs numpy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SHORTEST, LONGEST = 57, 2048
"""Range of the log-normal and the uniform lengths, in tokens."""

EQUAL_LENGTH = 512
"""Every document's tokens where all are equal."""


def _lognormal(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.clip(generator.lognormal(np.log(495), 0.8, count), SHORTEST, LONGEST).astype(np.int64)


def _uniform(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.integers(SHORTEST, LONGEST + 1, count)


def _equal(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.full(count, EQUAL_LENGTH)


SAMPLERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "lognormal": _lognormal,
    "uniform": _uniform,
    "equal": _equal,
}

DISTRIBUTIONS = {
    "lognormal": f"log-normal, median 495 and σ 0.8, clipped to {SHORTEST}-{LONGEST} tokens: mean about 650",
    "uniform": f"uniform over {SHORTEST}-{LONGEST} tokens",
    "equal": f"every document {EQUAL_LENGTH} tokens",
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

    Raises ValueError for an unknown distribution (lists those that exist), for a size below 1, where not exactly one
    size is given, and for `giant` by `num_documents`.
    """
    if name not in DISTRIBUTIONS:
        raise ValueError(f"unknown length distribution {name!r}; available: {', '.join(DISTRIBUTIONS)}")
    if (num_tokens is None) == (num_documents is None):
        raise ValueError(
            f"give either num_tokens or num_documents, got num_tokens={num_tokens} and num_documents={num_documents}"
        )
    for label, size in (("num_tokens", num_tokens), ("num_documents", num_documents)):
        if size is not None and size < 1:
            raise ValueError(f"{label} must be at least 1, got {size}")
    if name == "giant":
        if num_tokens is None:
            raise ValueError(f"'giant' is one document: give num_tokens, not num_documents={num_documents}")
        return np.array([num_tokens], dtype=np.int64)
    generator = np.random.default_rng(seed)
    if num_documents is not None:
        return SAMPLERS[name](generator, num_documents)
    assert num_tokens is not None
    lengths = SAMPLERS[name](generator, -(-num_tokens // SHORTEST))
    ends = np.cumsum(lengths)
    count = int(np.searchsorted(ends, num_tokens)) + 1
    lengths = lengths[:count]
    lengths[-1] -= ends[count - 1] - num_tokens
    return lengths
