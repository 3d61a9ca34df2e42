"""Sources to the documents of each split: loaded, tokenised, divided."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from packmamba.data.packers import Packs
from packmamba.data.sources import Source
from packmamba.data.text.corpus import Corpus, tokenise
from packmamba.data.text.encode import RowError
from packmamba.data.text.tokenizers import Tokenizer
from packmamba.errors import UsageError

Split = Literal["train", "val", "test", "predict"]
SPLITS: tuple[Split, ...] = get_args(Split)

EmptyDocuments = Literal["skip", "error"]


@dataclass(frozen=True)
class Documents:
    """The documents of one split."""

    corpus: Corpus
    rows: np.ndarray
    """int64 (documents,): their rows in the corpus, which are the rows of the source; none of them is empty."""

    def with_targets(self, packs: Packs) -> Packs:
        """Packs of these documents, which know how many targets they have where not every token is one."""
        if self.corpus.targets is None:
            return packs
        begins = self.corpus.offsets[self.rows[packs.pieces.doc]] + packs.pieces.start
        return replace(packs, piece_targets=self.corpus.count_targets(begins, packs.pieces.length))

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (documents,): tokens of each document."""
        return self.corpus.lengths[self.rows]


class DocumentSplits:
    """Opens the documents of a split, from the cache where they have been tokenised before.

    A split without a source of its own takes the validation documents; validation without a source takes a part of the
    training source's documents, which training then leaves out.
    """

    def __init__(
        self,
        sources: dict[Split, Source | None],
        tokenizer: Tokenizer,
        *,
        val_fraction: float,
        seed: int,
        max_documents: int | None,
        empty_documents: EmptyDocuments,
        chat_template: str | None,
        tokenizer_workers: int | None,
        cache_dir: Path,
    ) -> None:
        """Arguments: see `PackedDataModule`. sources: one for each split; that of training is never None.

        Raises ValueError for a number out of range or an unknown way to treat empty documents.
        """
        if not 0 <= val_fraction < 1:
            raise UsageError(f"val_fraction must be at least 0 and below 1, got {val_fraction}")
        if max_documents is not None and max_documents < 1:
            raise UsageError(f"max_documents must be at least 1, got {max_documents}")
        if tokenizer_workers is not None and tokenizer_workers < 0:
            raise UsageError(f"tokenizer_workers must be at least 0, got {tokenizer_workers}")
        if empty_documents not in get_args(EmptyDocuments):
            raise UsageError(f"unknown empty_documents {empty_documents!r}; available: skip, error")
        train = sources["train"]
        if val_fraction and sources["val"] is None and train is not None and train.repeats_documents:
            raise UsageError(
                f"val_fraction {val_fraction} would validate on documents that are trained on, because {train} repeats "
                "them; set val_source, or val_fraction=0, or stopping_strategy='first_exhausted'"
            )
        for split in SPLITS[1:]:
            if (other := sources[split]) is not None and other.streaming:
                raise UsageError(
                    f"{split}_source {other} cannot be streamed, only training documents can; set its streaming to "
                    "false, and max_documents if it is large"
                )
        if train is not None and train.streaming and sources["val"] is None and val_fraction:
            raise UsageError(
                f"val_fraction {val_fraction} is a part of a stream whose length is not known; set val_source, or "
                "val_fraction=0 for no validation"
            )
        self.sources = sources
        self.tokenizer = tokenizer
        self.val_fraction = val_fraction
        self.seed = seed
        self.max_documents = max_documents
        self.empty_documents: EmptyDocuments = empty_documents
        self.chat_template = chat_template
        self.tokenizer_workers = tokenizer_workers
        self.cache_dir = cache_dir
        self._corpora: dict[Split, Corpus] = {}
        self._not_empty: dict[Split, np.ndarray] = {}

    def source_of(self, split: Split) -> Split:
        """The split whose source a split's documents come from."""
        if self.sources[split] is not None:
            return split
        return "train" if self.sources["val"] is None or split == "train" else "val"

    def source(self, split: Split) -> Source:
        """The source that a split's documents come from."""
        source = self.sources[self.source_of(split)]
        assert source is not None
        return source

    def is_streamed(self, split: Split) -> bool:
        """Whether the source of a split is read while training goes on."""
        return self.source(split).streaming

    def corpus(self, split: Split) -> Corpus:
        """Every document of the source of a split, tokenised."""
        name = self.source_of(split)
        if name not in self._corpora:
            source = self.source(split)
            dataset = source.load(self.cache_dir)
            if self.max_documents is not None and len(dataset) > self.max_documents:
                dataset = dataset.select(range(self.max_documents))
            try:
                self._corpora[name] = tokenise(
                    dataset,
                    self.tokenizer,
                    self.cache_dir,
                    chat_template=self.chat_template,
                    workers=self.tokenizer_workers,
                )
            except RowError as error:
                raise UsageError(f"{source}, {error}") from error
        return self._corpora[name]

    def open(self, split: Split) -> Documents | None:
        """The documents of a split; None if it has none, because `val_fraction` is 0 and no source was given, or if its
        source is streamed.

        Raises ValueError for an empty document where that is an error (named with its row), or if validation would
        leave no document to train on.
        """
        if self.is_streamed(split):
            return None
        corpus = self.corpus(split)
        rows = self._rows(self.source_of(split))
        if self.source_of(split) != "train" or (split == "train" and self.sources["val"] is not None):
            return Documents(corpus, rows)
        held_out = self._held_out(rows)
        if split == "train":
            return Documents(corpus, np.setdiff1d(rows, held_out, assume_unique=True))
        return Documents(corpus, held_out) if held_out.size else None

    def _rows(self, name: Split) -> np.ndarray:
        """The documents of a source that can be trained on; says once how many cannot."""
        if name not in self._not_empty:
            corpus = self.corpus(name)
            empty, silent = corpus.lengths == 0, corpus.silent
            self._leave_out(empty, f"documents of {self.sources[name]} are empty after tokenisation")
            self._leave_out(silent, f"conversations of {self.sources[name]} have nothing that the assistant says")
            self._not_empty[name] = np.flatnonzero(~(empty | silent))
            if not self._not_empty[name].size:
                raise UsageError(f"no document of {self.sources[name]} has a token to train on; it needs at least one")
        return self._not_empty[name]

    def _leave_out(self, left_out: np.ndarray, what: str) -> None:
        if not left_out.any():
            return
        message = f"{left_out.sum()} of {left_out.size} {what}"
        if self.empty_documents == "error":
            row = int(np.argmax(left_out))
            raise UsageError(f"{message}, the first is row {row}; drop them, or set empty_documents='skip'")
        rank_zero_warn(f"{message}; they are skipped")

    def _held_out(self, rows: np.ndarray) -> np.ndarray:
        if self.val_fraction == 0:
            return rows[:0]
        count = max(1, round(self.val_fraction * rows.size))
        if count >= rows.size:
            raise UsageError(
                f"val_fraction {self.val_fraction} takes {count} of the {rows.size} documents of "
                f"{self.sources['train']}, which leaves none to train on; set val_source, or val_fraction=0"
            )
        return np.sort(np.random.default_rng((self.seed, rows.size)).choice(rows, count, replace=False))
