"""Tokenised documents on disk: one flat array of token ids and where each document begins, mapped into memory."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from packmamba.atomic import new_file, new_folder
from packmamba.data.cache import key_of, progress_bar
from packmamba.data.checksums import is_intact, seal
from packmamba.data.text.chat import ChatTemplate
from packmamba.data.text.conversation import TrainOn
from packmamba.data.text.encode import Encoder
from packmamba.data.text.parallel import encode_all, num_workers, undecodable
from packmamba.data.text.tokenizers import Tokenizer
from packmamba.errors import UsageError

_log = logging.getLogger(__name__)

_FORMAT = 1
"""Changes when the files of a corpus do, so that old caches are not read."""
_CONVERSATIONS = 2
"""Changes when the same conversations get other tokens or targets."""
_CHUNK = 2**22
"""Tokens whose targets are counted at once."""


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
    def targets(self) -> np.ndarray | None:
        """bool (tokens,): whether each token is to be predicted, read from disk when looked at; None: all of them are,
        for no document is a conversation."""
        if self.template_digest is None:
            return None
        return np.memmap(self.folder / "targets.bin", dtype=bool, mode="r")

    @property
    def template_digest(self) -> str | None:
        """The same for the same chat template; None where no document is a conversation."""
        return self._description.get("chat_template")

    @property
    def digests(self) -> dict[str, str | None]:
        """What has been tokenised, by the names a user knows it by."""
        return {"documents": self.text_digest, "chat_template": self.template_digest}

    def count_targets(self, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int64 (K,): targets of pieces of documents, tokens begins[k] to begins[k] + lengths[k] of the corpus.

        A piece's first token is no target.
        """
        if self.targets is None:
            return np.maximum(lengths - 1, 0)
        ends = begins + lengths
        return self._targets_before(ends) - self._targets_before(np.minimum(begins + 1, ends))

    def _targets_before(self, positions: np.ndarray) -> np.ndarray:
        """int64 (K,): targets among all tokens before each position; a part of the corpus is looked at at a time."""
        assert self.targets is not None
        order = np.argsort(positions)
        ascending, counts = positions[order], np.empty(positions.size, dtype=np.int64)
        total = np.int64(0)
        for begin in range(0, self.targets.size + 1, _CHUNK):
            chunk = np.append(False, self.targets[begin : begin + _CHUNK])
            running = total + np.cumsum(chunk, dtype=np.int64)
            first, last = np.searchsorted(ascending, [begin, begin + _CHUNK])
            counts[order[first:last]] = running[ascending[first:last] - begin]
            total = running[-1]
        return counts

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (documents,): tokens of each document."""
        return np.diff(self.offsets)

    @cached_property
    def silent(self) -> np.ndarray:
        """bool (documents,): conversations in which the assistant says nothing, so that there is nothing to predict."""
        if self.targets is None:
            return np.zeros(len(self), dtype=bool)
        return (self.lengths > 0) & (self.count_targets(self.offsets[:-1], self.lengths) == 0)

    def __len__(self) -> int:
        return self.offsets.size - 1


def tokenise(
    dataset: Dataset,
    tokenizer: Tokenizer,
    cache_dir: Path,
    *,
    chat_template: str | None = None,
    train_on: TrainOn = "all_assistant",
    workers: int | None = 0,
) -> Corpus:
    """The documents of a source as token ids, from the cache if these documents have met this tokenizer before.

    chat_template: a Jinja file for conversations; see `ChatTemplate.of`, and `Encoder.encode` for the
    treatment of a row. train_on: which of the assistant's messages are to be predicted. workers: processes that
    tokenise; 0: this one; None: see `num_workers`.

    Raises UsageError if every document is empty, or if the tokenizer gives an id that is not below its vocabulary size;
    RowError for a row that is not UTF-8, or a conversation that cannot be written out; MissingFileError if the chat
    template is not there.
    """
    template = None if dataset.column_names == ["text"] else ChatTemplate.of(tokenizer, chat_template)
    text_digest = _text_digest(dataset, cache_dir)
    folder = _folder(text_digest, tokenizer, template, train_on, cache_dir)
    if is_intact(folder, "Tokens"):
        _log.info("tokens of %d documents come from the cache, %s", len(dataset), folder)
        return Corpus(folder)
    encoder = Encoder(tokenizer, template, train_on)
    workers = num_workers(dataset, encoder) if workers is None else workers
    started = time.perf_counter()
    with new_folder(folder) as temporary:
        _write(dataset, encoder, workers, text_digest, temporary)
        seal(temporary)
    corpus, seconds = Corpus(folder), time.perf_counter() - started
    by = f"{workers} processes" if workers else "one process"
    _log.info("%d documents, %d tokens in %.1f s by %s, %s", len(corpus), corpus.offsets[-1], seconds, by, folder)
    return corpus


def _folder(
    text_digest: str, tokenizer: Tokenizer, template: ChatTemplate | None, train_on: TrainOn, cache_dir: Path
) -> Path:
    of_conversations = [template, train_on, _CONVERSATIONS] if template else []
    return cache_dir / "tokens" / key_of(_FORMAT, text_digest, tokenizer.fingerprint, *of_conversations)


def is_tokenised(
    dataset: Dataset,
    tokenizer: Tokenizer,
    cache_dir: Path,
    *,
    chat_template: str | None = None,
    train_on: TrainOn = "all_assistant",
) -> bool:
    """Whether `tokenise` would take these documents from the cache, as far as can be told without reading them."""
    if not (cache_dir / "digests" / key_of(_FORMAT, dataset._fingerprint)).exists():
        return False
    template = None if dataset.column_names == ["text"] else ChatTemplate.of(tokenizer, chat_template)
    return _folder(_text_digest(dataset, cache_dir), tokenizer, template, train_on, cache_dir).exists()


def _write(dataset: Dataset, encoder: Encoder, workers: int, text_digest: str, folder: Path) -> None:
    lengths, late_turns = [np.zeros(1, dtype=np.int64)], 0
    with ExitStack() as stack:
        tokens = stack.enter_context((folder / "tokens.bin").open("wb"))
        targets = None if encoder.template is None else stack.enter_context((folder / "targets.bin").open("wb"))
        progress = stack.enter_context(progress_bar())
        task = progress.add_task("Tokenising", total=len(dataset))
        for encoded in stack.enter_context(closing(encode_all(dataset, encoder, workers))):
            encoded.tokens.tofile(tokens)
            if targets is not None and encoded.targets is not None:
                encoded.targets.tofile(targets)
            lengths.append(encoded.lengths)
            late_turns += encoded.late_turns
            progress.advance(task, encoded.lengths.size)
    offsets = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    if not offsets[-1]:
        raise UsageError(f"all {len(dataset)} documents are empty after tokenisation; at least one needs a token")
    if late_turns:
        _log.warning(
            "%d of the assistant's turns begin inside a token that also holds the end of what comes before, and is not "
            "trained on; a chat template should write a line break or a special token before the assistant's text",
            late_turns,
        )
    np.save(folder / "offsets.npy", offsets)
    description = {
        "text_digest": text_digest,
        "tokenizer": encoder.tokenizer.fingerprint,
        "dtype": encoder.dtype.name,
        "chat_template": None if encoder.template is None else key_of(encoder.template),
    }
    (folder / "corpus.json").write_text(json.dumps(description, indent=2))


def _text_digest(dataset: Dataset, cache_dir: Path) -> str:
    """A hash of the documents. Remembered under the dataset's own fingerprint, so that large files are hashed once;
    with a check, so that a damaged one is not taken."""
    memo = cache_dir / "digests" / key_of(_FORMAT, dataset._fingerprint)
    known = memo.read_text().split() if memo.exists() else []
    if len(known) == 2 and known[1] == key_of(known[0]):
        return known[0]
    conversations = [name for name in dataset.column_names if name != "text"]
    lengths, texts, others = (hashlib.blake2b(digest_size=16) for _ in range(3))
    for table in cast(Iterator[pa.Table], dataset.with_format("arrow").iter(batch_size=10_000)):
        if "text" in table.column_names:
            column = pa.chunked_array(table.column("text").cast(pa.large_string())).combine_chunks()
            column = pyarrow.compute.fill_null(column, "")
            _, offsets, values = column.buffers()
            bounds = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
            lengths.update(np.diff(bounds).tobytes())
            texts.update(memoryview(values or b"")[bounds[0] : bounds[-1]])
        if conversations:
            try:
                rows = table.select(conversations).to_pylist()
            except UnicodeDecodeError as error:
                raise undecodable(dataset, 0) from error
            others.update(json.dumps(rows).encode())
    digest = key_of(lengths.hexdigest(), texts.hexdigest(), *([others.hexdigest()] if conversations else []))
    with new_file(memo) as file:
        file.write(f"{digest} {key_of(digest)}\n".encode())
    return digest
