"""Documents to packs, by the options of a data module."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packmamba.data.cache import progress_bar
from packmamba.data.documents import Documents
from packmamba.data.embeddings import ngram_embeddings_of
from packmamba.data.options import DataOptions
from packmamba.data.packers import Packs, pack, refuse_long_documents


def pack_documents(
    options: DataOptions,
    documents: Documents,
    *,
    strategy: str | None = None,
    seed: int | None = None,
    embeddings: np.ndarray | None = None,
) -> Packs:
    """Packs of documents, numbered by `documents.rows`. strategy: another one than `options` name. seed: takes the
    documents in a random order. embeddings: for the strategy `threshold_filtering`.

    Raises UsageError for a document longer than a pack where that is an error (named with its row).
    """
    if options.handling.long_documents == "error":
        refuse_long_documents(documents.lengths, options.packs.capacity, documents.rows)
    with progress_bar() as progress:
        task = progress.add_task("Packing", total=documents.rows.size, visible=embeddings is not None)
        packs = pack(
            documents.lengths,
            options.packs.capacity,
            strategy or options.packs.strategy,
            seed=seed,
            buffer=options.packs.buffer,
            embeddings=embeddings,
            filtering=options.packs.threshold_filtering,
            advance=lambda count: progress.advance(task, count),
        )
    return documents.with_targets(packs)


def pack_section(options: DataOptions, documents: Documents, epoch: int, section: int) -> Packs:
    """Packs of a section of a stream; each section of each epoch is shuffled differently."""
    seed = None
    if options.order.shuffle:
        seed = int(np.random.SeedSequence((options.order.seed, epoch, section)).generate_state(1)[0])
    embeddings = None
    if options.packs.strategy == "threshold_filtering":
        embeddings = embed(options, documents, documents.corpus.folder)
    return pack_documents(options, documents, seed=seed, embeddings=embeddings)


def embed(options: DataOptions, documents: Documents, cache_dir: Path) -> np.ndarray:
    """Embeddings (documents, any) made from n-grams of the documents' tokens, from the cache if they are there."""
    return ngram_embeddings_of(documents, options.documents.tokenizer.vocab_size, cache_dir)
