"""Embeddings of documents without a model: hashed n-gram TF-IDF of token ids. NumPy only.

Each n-gram (n tokens in a row, inside one document) is hashed. Its inverse document frequency, by which n-grams that
most documents have count little, is estimated on a sample; its place and sign in the embedding are taken from its hash
(Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", arXiv 0902.2206).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from packmamba.errors import UsageError

_BUCKETS = 18
"""Bits of the hash by which document frequencies are counted."""
_SAMPLE = 4096
"""Documents, at least, that document frequencies are counted over, where there are so many."""
_LOW = np.uint64(0xFFFFFFFF)
_BLOCK = 256
"""Documents that are embedded at once."""


def ngram_embeddings(
    documents: Sequence[np.ndarray],
    *,
    dim: int = 512,
    longest: int = 2,
    advance: Callable[[int], object] = lambda documents: None,
) -> np.ndarray:
    """Embeddings, float32 (documents, dim), of documents given as arrays of token ids. Deterministic.

    N-grams of 1 to `longest` tokens count: 3 serve bytes best, 1 subwords of a vocabulary of thousands. `advance` is
    called with the number of documents of every block that is done. O(tokens · longest) time, O(documents · dim)
    memory.

    Raises UsageError where there is no document, or dim or longest is below 1.
    """
    for name, value in (("dim", dim), ("longest", longest)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if not len(documents):
        raise UsageError("there is no document to embed")
    weights = _inverse_document_frequency(documents, longest)
    embeddings = np.empty((len(documents), dim), dtype=np.float32)
    for begin in range(0, len(documents), _BLOCK):
        block = documents[begin : begin + _BLOCK]
        values = np.zeros(len(block) * dim)
        for doc, hashes in _ngrams(block, longest):
            place = doc * dim + (((hashes & _LOW) * np.uint64(dim)) >> np.uint64(32)).astype(np.int64)
            sign = 1.0 - 2.0 * ((hashes >> np.uint64(32)) & np.uint64(1))
            values += np.bincount(place, sign * weights[_bucket(hashes)], values.size)
        embeddings[begin : begin + len(block)] = values.reshape(len(block), dim)
        advance(len(block))
    return embeddings


def _inverse_document_frequency(documents: Sequence[np.ndarray], longest: int) -> np.ndarray:
    """ln((1 + documents) / (1 + documents that have it)) of each bucket, over documents evenly spread; 0 where not even
    two have it: n-grams that nothing shares are most of all, and would drown the others."""
    sample = documents[:: max(1, len(documents) // _SAMPLE)]
    counts = np.zeros(1 << _BUCKETS, dtype=np.int64)
    for begin in range(0, len(sample), _BLOCK):
        block = sample[begin : begin + _BLOCK]
        found = [doc << _BUCKETS | _bucket(hashes) for doc, hashes in _ngrams(block, longest)]
        present = np.unique(np.concatenate(found)) & (1 << _BUCKETS) - 1
        counts += np.bincount(present, minlength=counts.size)
    return np.where(counts > 1, np.log((1 + len(sample)) / (1 + counts)), 0.0)


def _ngrams(documents: Sequence[np.ndarray], longest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each n, the document of every n-gram, int64, and its hash, uint64."""
    tokens = np.concatenate(documents).astype(np.uint64) + np.uint64(1)
    doc = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    rolling = tokens
    for n in range(1, longest + 1):
        if n > 1:
            rolling = rolling[:-1] * np.uint64(0x9E3779B97F4A7C15) + tokens[n - 1 :]
        inside = doc[: rolling.size] == doc[n - 1 :]
        mixed = rolling[inside]
        # The finaliser of MurmurHash3: every bit depends on every bit.
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
        yield doc[: rolling.size][inside], mixed ^ (mixed >> np.uint64(33))


def _bucket(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _BUCKETS)).astype(np.int64)
