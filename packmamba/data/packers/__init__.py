"""Lengths in, packs of documents out: which document lies in which pack. NumPy only.

A *piece* is a run of tokens of one document: the whole document, or a part of one that had to be cut. A *pack* is a few
pieces that are trained side by side. Every token of every document is placed exactly once.

| strategy | what it does |
| --- | --- |
| `sequential` | arrival order; a pack is sealed when the next document does not fit |
| `local_greedy` | the same inside a buffer: the longest first, the rest filled with the longest that still fits |
| `first_fit_decreasing` | longest document first, into the first pack with room |
| `best_fit_decreasing` | longest document first, into the fullest pack with room |
| `wrapped` | documents end to end, cut every `capacity` tokens |
| `threshold_filtering` | along a path of related documents that avoids near copies; sealed as `sequential` |
| `padded` | baseline: one document a row, rows padded to the longest of their batch |
| `single` | baseline: one document a pack |

`sequential` and `local_greedy` are PackMamba's (arXiv 2408.03865), `best_fit_decreasing` is that of "Fewer Truncations
Improve Language Modeling" (arXiv 2404.10830), `threshold_filtering` is TFP (arXiv 2408.09327).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from packmamba.data.packers import arrival
from packmamba.data.packers.decreasing import best_fit, decreasing, first_fit
from packmamba.data.packers.ngrams import ngram_embeddings
from packmamba.data.packers.packs import Packs, Pieces
from packmamba.data.packers.threshold import ThresholdFiltering, checked_embeddings, threshold_path
from packmamba.errors import UsageError, UsageTypeError, did_you_mean

__all__ = [
    "STRATEGIES",
    "STREAMING_STRATEGIES",
    "LongDocuments",
    "Packs",
    "Pieces",
    "Strategy",
    "ThresholdFiltering",
    "check_options",
    "ngram_embeddings",
    "pack",
    "refuse_long_documents",
    "stream_packs",
]

Strategy = Literal[
    "sequential",
    "local_greedy",
    "first_fit_decreasing",
    "best_fit_decreasing",
    "wrapped",
    "threshold_filtering",
    "padded",
    "single",
]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
STREAMING_STRATEGIES = ("sequential", "local_greedy", "wrapped")
"""What `stream_packs` knows."""

LongDocuments = Literal["split", "error"]


def pack(
    lengths: Sequence[int] | np.ndarray,
    capacity: int,
    strategy: str = "best_fit_decreasing",
    *,
    seed: int | None = None,
    buffer: int = 1024,
    long_documents: str = "split",
    embeddings: np.ndarray | None = None,
    filtering: ThresholdFiltering | None = None,
    advance: Callable[[int], object] = lambda documents: None,
) -> Packs:
    """Places every token of every document in a pack of at most `capacity` tokens. Deterministic.

    lengths: (documents,) integers, tokens of each document. seed: take the documents in a random order instead of as
    they arrive, which also decides ties among equal lengths. buffer: documents that `local_greedy` looks at.

    A document longer than `capacity` is cut every `capacity` tokens (`wrapped` cuts wherever a pack ends); nothing is
    truncated or dropped, and `Packs.num_split` counts such documents. long_documents="error" refuses to cut.

    `threshold_filtering` alone takes embeddings, (documents, any) numbers, and filtering, its options; its time grows
    with documents · filtering.block, and advance is called with the number of documents it has dealt with now and then.
    It decides which documents share a pack, that is, an optimiser step: where states and attention are reset between
    documents, as packmamba's are, no document ever sees the related ones beside it.

    Raises UsageError for lengths that are not one-dimensional, an empty list, a length below 1 (named with its index),
    a capacity or buffer below 1, an unknown strategy, a document that must not be cut, or embeddings that are missing
    or of another shape; UsageTypeError for lengths or a capacity that are not integers.
    """
    check_options(strategy, capacity, buffer, long_documents)
    lengths = _checked_lengths(lengths)
    if long_documents == "error":
        refuse_long_documents(lengths, capacity)
    order = np.arange(lengths.size) if seed is None else np.random.default_rng(seed).permutation(lengths.size)
    if strategy == "wrapped":
        return arrival.wrapped(lengths, order, capacity)
    if strategy == "threshold_filtering":
        embeddings = checked_embeddings(embeddings, lengths.size)
        order = threshold_path(embeddings, order, filtering or ThresholdFiltering(), advance)
    pieces = arrival.cut(lengths, order, capacity)
    row_lengths = None
    if strategy in ("sequential", "threshold_filtering"):
        offsets = arrival.sequential(pieces.length, capacity)
    elif strategy == "local_greedy":
        chosen, offsets = arrival.local_greedy(pieces.length, capacity, buffer)
        pieces = Pieces(*(column[chosen] for column in pieces))
    elif strategy == "first_fit_decreasing":
        pieces, offsets = decreasing(pieces, capacity, first_fit)
    elif strategy == "best_fit_decreasing":
        pieces, offsets = decreasing(pieces, capacity, best_fit)
    elif strategy == "padded":
        offsets, row_lengths = arrival.padded(pieces.length, capacity)
    else:
        offsets = np.arange(pieces.length.size + 1)
    return Packs(pieces, offsets, capacity, strategy, row_lengths)


def stream_packs(
    lengths: Iterable[int],
    capacity: int,
    strategy: str = "local_greedy",
    *,
    buffer: int = 1024,
    long_documents: str = "split",
) -> Iterator[Pieces]:
    """The packs of `pack`, one after the other, while documents are still arriving: for lengths that nobody knows yet.

    `Pieces.doc` counts documents as they arrive. `sequential` and `wrapped` remember one pack, `local_greedy` at most
    `buffer` pieces more; documents to come are not looked at. Other strategies need all lengths, and are refused.

    >>> [pieces.doc.tolist() for pieces in stream_packs(iter([3, 5, 2, 4, 8]), 8, buffer=3)]
    [[1, 0], [4], [3, 2]]

    Raises what `pack` raises, for a length when it arrives; a stream without documents has no packs.
    """
    if strategy in STRATEGIES and strategy not in STREAMING_STRATEGIES:
        raise UsageError(
            f"strategy {strategy!r} needs to know all lengths; for a stream there are {', '.join(STREAMING_STRATEGIES)}"
        )
    check_options(strategy, capacity, buffer, long_documents, STREAMING_STRATEGIES)
    checked = _checked_stream(lengths, capacity if long_documents == "error" else None)
    if strategy == "wrapped":
        packs = arrival.stream_wrapped(checked, capacity)
    else:
        pieces = (
            (doc, start, min(length - start, capacity))
            for doc, length in enumerate(checked)
            for start in range(0, length, capacity)
        )
        if strategy == "sequential":
            packs = arrival.stream_sequential(pieces, capacity)
        else:
            packs = arrival.stream_local_greedy(pieces, capacity, buffer)
    return (Pieces(*np.array(pieces, dtype=np.int64).T) for pieces in packs)


def refuse_long_documents(lengths: np.ndarray, capacity: int, rows: np.ndarray | None = None) -> None:
    """Raises UsageError if a document is longer than `capacity`, naming the first: its number, or its entry in `rows`,
    and how large a pack would have to be."""
    long = np.flatnonzero(lengths > capacity)
    if long.size:
        first = int(long[0])
        raise UsageError(
            f"document {first if rows is None else rows[first]} has {lengths[first]} tokens, more than the capacity of "
            f"{capacity}, as have {long.size} of {lengths.size} documents; raise capacity to {lengths.max()}, drop "
            "them, or let them be cut with long_documents='split'"
        )


def check_options(
    strategy: str,
    capacity: int,
    buffer: int = 1,
    long_documents: str = "split",
    available: Sequence[str] = STRATEGIES,
) -> None:
    """Raises UsageError or UsageTypeError for options of `pack` that no lengths would go with."""
    if strategy not in available:
        raise UsageError(
            f"unknown strategy {strategy!r}; available: {', '.join(available)}{did_you_mean(str(strategy), available)}"
        )
    for name, value in (("capacity", capacity), ("buffer", buffer)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise UsageTypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if long_documents not in get_args(LongDocuments):
        raise UsageError(f"unknown long_documents {long_documents!r}; available: split, error")
    if long_documents == "error" and strategy == "wrapped":
        raise UsageError(
            "strategy 'wrapped' cuts documents wherever a pack ends; for long_documents='error' choose another"
        )


def _checked_lengths(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    values = np.asarray(lengths)
    if values.ndim != 1 or values.size == 0:
        raise UsageError(f"lengths must name at least one document in one dimension, got shape {values.shape}")
    if not np.issubdtype(values.dtype, np.integer):
        raise UsageTypeError(f"lengths must be integers, got dtype {values.dtype}")
    if values.min() < 1:
        index = int(np.argmax(values < 1))
        raise UsageError(f"document {index} has length {values[index]}; every document needs at least one token")
    return values.astype(np.int64)


def _checked_stream(lengths: Iterable[int], longest: int | None) -> Iterator[int]:
    for doc, length in enumerate(lengths):
        try:
            length = operator.index(length)
        except TypeError:
            raise UsageTypeError(f"lengths must be integers; document {doc} has length {length!r}") from None
        if length < 1:
            raise UsageError(f"document {doc} has length {length}; every document needs at least one token")
        if longest is not None and length > longest:
            raise UsageError(
                f"document {doc} has {length} tokens, more than the capacity of {longest}; raise capacity, drop it, or "
                "let it be cut with long_documents='split'"
            )
        yield length
