"""Tokenised documents on disk: one flat array of token ids and where each document begins, mapped into memory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from packmamba.data.cache import key_of, new_folder, progress_bar, write_atomically
from packmamba.data.tokenizers import Tokenizer

_log = logging.getLogger(__name__)

_FORMAT = 1
"""Changes when the files of a corpus do, so that old caches are not read."""
_BATCH = 1000
"""Documents that are tokenised at once."""


@dataclass(frozen=True)
class Corpus:
    """Documents as token ids. Document i is row i of the dataset it was made from; it has no token where that is empty.

    Only the path travels to loader workers; each maps the files itself.
    """

    folder: Path

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    @cached_property
    def _description(self) -> dict[str, Any]:
        return json.loads((self.folder / "corpus.json").read_text())

    @property
    def text_digest(self) -> str:
        """The same for the same texts in the same order."""
        return self._description["text_digest"]

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 (documents + 1,): document i owns the tokens offsets[i] to offsets[i + 1]."""
        return np.load(self.folder / "offsets.npy")

    @cached_property
    def tokens(self) -> np.ndarray:
        """uint16 or uint32 (tokens,): the ids of every document, one after the other, read from disk when looked at."""
        return np.memmap(self.folder / "tokens.bin", dtype=self._description["dtype"], mode="r")

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (documents,): tokens of each document."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1


def tokenise(dataset: Dataset, tokenizer: Tokenizer, cache_dir: Path) -> Corpus:
    """The documents of column `text` as token ids, from the cache if these texts have met this tokenizer before.

    A text without any token of its own gets no BOS or EOS either and becomes an empty document, as does a missing
    value.

    Raises ValueError if every document is empty, or if the tokenizer gives an id that is not below its vocabulary size.
    """
    text_digest = _text_digest(dataset, cache_dir)
    folder = cache_dir / "tokens" / key_of(_FORMAT, text_digest, tokenizer.fingerprint)
    if folder.exists():
        _log.info("tokens of %d documents come from the cache, %s", len(dataset), folder)
        return Corpus(folder)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    with new_folder(folder) as temporary:
        lengths = []
        with (temporary / "tokens.bin").open("wb") as file, progress_bar() as progress:
            task = progress.add_task("Tokenising", total=len(dataset))
            for batch in cast(Iterator[dict[str, list[str | None]]], dataset.iter(batch_size=_BATCH)):
                documents = _encode([text or "" for text in batch["text"]], tokenizer)
                np.concatenate(documents).astype(dtype).tofile(file)
                lengths += [document.size for document in documents]
                progress.advance(task, len(documents))
        if not any(lengths):
            raise ValueError(f"all {len(lengths)} documents are empty after tokenisation; at least one needs a token")
        np.save(temporary / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
        description = {"text_digest": text_digest, "tokenizer": tokenizer.fingerprint, "dtype": dtype.name}
        (temporary / "corpus.json").write_text(json.dumps(description, indent=2))
    _log.info("tokenised %d documents into %d tokens, %s", len(lengths), sum(lengths), folder)
    return Corpus(folder)


def _encode(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    documents = [tokenizer.frame(ids) if len(ids) else np.empty(0, np.int64) for ids in tokenizer.encode_texts(texts)]
    largest = max((int(document.max()) for document in documents if document.size), default=0)
    if largest >= tokenizer.vocab_size:
        raise ValueError(
            f"the tokenizer gave token id {largest}, but its vocabulary has {tokenizer.vocab_size} entries"
        )
    return documents


def _text_digest(dataset: Dataset, cache_dir: Path) -> str:
    """A hash of the texts. Remembered under the dataset's own fingerprint, so that large files are hashed once."""
    memo = cache_dir / "digests" / key_of(_FORMAT, dataset._fingerprint)
    if memo.exists():
        return memo.read_text()
    lengths, texts = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for table in cast(Iterator[pa.Table], dataset.with_format("arrow").iter(batch_size=10_000)):
        column = pa.chunked_array(table.column("text").cast(pa.large_string())).combine_chunks()
        column = pyarrow.compute.fill_null(column, "")
        _, offsets, values = column.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
        lengths.update(np.diff(bounds).tobytes())
        texts.update(memoryview(values or b"")[bounds[0] : bounds[-1]])
    digest = key_of(lengths.hexdigest(), texts.hexdigest())
    with write_atomically(memo) as temporary:
        temporary.write_text(digest)
    return digest
