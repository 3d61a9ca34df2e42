"""Embeddings by which `threshold_filtering` compares documents: a file, or n-grams of their tokens, cached."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from packmamba.atomic import new_folder
from packmamba.data.cache import key_of, progress_bar
from packmamba.data.checksums import is_intact, seal
from packmamba.data.documents import Documents
from packmamba.data.embedding_files import open_embeddings
from packmamba.data.packers import ngram_embeddings
from packmamba.errors import UsageError

_FORMAT = 1
"""Changes when `ngram_embeddings` does, so that old caches are not read."""
_SMALL_VOCABULARY = 1024
"""Tokens of fewer kinds are characters more than words, and say little by themselves."""


def read_embeddings(file: str, documents: Documents) -> np.ndarray:
    """The rows of a .npy file that belong to the documents; it has one for each document of their source.

    Raises FileNotFoundError, or UsageError for a file that is no array or has another number of rows.
    """
    embeddings = open_embeddings(file)
    if len(embeddings) != len(documents.corpus):
        raise UsageError(
            f"embeddings {file!r} need one row for each of the {len(documents.corpus)} documents of the source, empty "
            f"ones too; found {embeddings.shape}"
        )
    return embeddings[documents.rows]


def ngram_embeddings_of(documents: Documents, vocab_size: int, cache_dir: Path) -> np.ndarray:
    """`ngram_embeddings` of the documents' tokens, computed once. vocab_size: of their tokenizer."""
    longest = 3 if vocab_size <= _SMALL_VOCABULARY else 1
    rows = hashlib.blake2b(documents.rows.tobytes(), digest_size=16).hexdigest()
    folder = cache_dir / "embeddings" / key_of(_FORMAT, documents.corpus.folder.name, rows)
    if not is_intact(folder, "Embeddings"):
        tokens = np.asarray(documents.corpus.tokens)
        begins = documents.corpus.offsets[documents.rows]
        views = [tokens[begin:end] for begin, end in zip(begins, begins + documents.lengths, strict=True)]
        with new_folder(folder) as temporary, progress_bar() as progress:
            task = progress.add_task("Embedding", total=len(views))
            embeddings = ngram_embeddings(views, longest=longest, advance=lambda count: progress.advance(task, count))
            np.save(temporary / "embeddings.npy", embeddings)
            seal(temporary)
    return np.load(folder / "embeddings.npy", mmap_mode="r")
