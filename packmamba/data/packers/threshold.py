"""Threshold filtering packing (TFP, arXiv 2408.09327): packs of related documents that are no copies of each other.

N documents · d numbers an embedding · B documents a block · w documents looked back at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from packmamba.errors import UsageError

_NORM = 2048
"""Length of embeddings that are rounded to whole numbers."""


@dataclass(frozen=True, kw_only=True)
class ThresholdFiltering:
    """How the path through the documents is chosen.

    Raises UsageError for a number out of range.
    """

    threshold: float = 0.1
    """The next document is further than this from the last `window` ones: 1 - cosine of the embeddings, 0 to 2."""
    window: int = 4
    """How many of the last chosen documents the next one is compared with."""
    block: int = 4096
    """Documents that are searched at a time: memory grows with its square, time with its product with all documents."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 2:
            raise UsageError(f"threshold must be at least 0 and below 2, got {self.threshold}")
        for name in ("window", "block"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")


def threshold_path(
    embeddings: np.ndarray,
    order: np.ndarray,
    options: ThresholdFiltering,
    advance: Callable[[int], object] = lambda documents: None,
) -> np.ndarray:
    """A greedy path through all documents, (N,) row numbers of `embeddings`; starts with order[0].

    The next document is the nearest one to the last that is not visited yet and whose distance to each of the last w is
    above the threshold. Where no document is, the one that is furthest from the nearest of the last w comes next: the
    path goes on as diversely as it can, and no document is left out.

    The whole search would be O(N²); so `order` is cut into blocks of at most B documents, and the path goes through one
    block after the other, without forgetting the last w. A random order makes the blocks random samples. O(N · B · d)
    time, O(N · d + B²) memory. `advance` is called with the number of documents of every block that is done.

    Embeddings are rounded to whole numbers whose products a float32 holds exactly, so that the path is the same on
    every machine, whatever order its linear algebra adds in. A row of zeros has distance 1 from everything.
    """
    too_near = (1 - options.threshold) * _NORM**2
    recent: deque[np.ndarray] = deque(maxlen=options.window)
    path = []
    for rows in np.array_split(order, -(-order.size // options.block)):
        vectors = _rounded(embeddings[rows])
        likeness = vectors @ vectors.T
        last: deque[np.ndarray] = deque((vectors @ vector for vector in recent), maxlen=options.window)
        left = np.ones(rows.size, dtype=bool)
        for _ in range(rows.size):
            chosen = _next(last, left, too_near) if last else 0
            left[chosen] = False
            last.append(likeness[chosen])
            recent.append(vectors[chosen])
            path.append(rows[chosen])
        advance(rows.size)
    return np.array(path)


def _next(last: deque[np.ndarray], left: np.ndarray, too_near: float) -> int:
    """last: for each of the last chosen, the latest at the end, the likeness of every document to it."""
    nearest = last[0]
    for likeness in list(last)[1:]:
        nearest = np.maximum(nearest, likeness)
    allowed = left & (nearest < too_near)
    candidate = int(np.argmax(np.where(allowed, last[-1], -np.inf)))
    return candidate if allowed[candidate] else int(np.argmin(np.where(left, nearest, np.inf)))


def _rounded(embeddings: np.ndarray) -> np.ndarray:
    """Scaled to length 2^11 and rounded: products add up to less than 2^24, in whole numbers."""
    vectors = embeddings.astype(np.float64)
    norms = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    return np.rint(vectors * (_NORM / np.where(norms > 0, norms, 1))).astype(np.float32)


def checked_embeddings(embeddings: np.ndarray | None, documents: int) -> np.ndarray:
    """Raises UsageError for embeddings that are missing, not one row a document, or not finite (named with its row)."""
    if embeddings is None:
        raise UsageError(
            "strategy 'threshold_filtering' needs embeddings, an array (documents, numbers); "
            "packmamba.data.packers.ngram_embeddings makes one from token ids"
        )
    embeddings = np.asanyarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) != documents:
        raise UsageError(f"embeddings need one row for each of the {documents} documents, got shape {embeddings.shape}")
    if not np.issubdtype(embeddings.dtype, np.floating) and not np.issubdtype(embeddings.dtype, np.integer):
        raise UsageError(f"embeddings must be numbers, got dtype {embeddings.dtype}")
    for begin in range(0, documents, 4096):  # they may be mapped from a file larger than memory
        finite = np.isfinite(embeddings[begin : begin + 4096]).all(axis=1)
        if not finite.all():
            raise UsageError(f"the embedding of document {begin + int(np.argmin(finite))} is not finite")
    return embeddings
