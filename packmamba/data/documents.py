"""Sources to the documents of each split: loaded, tokenised, divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from packmamba.data.options import DataOptions, EmptyDocuments, Split
from packmamba.data.packers import Packs
from packmamba.data.sources import Source
from packmamba.data.text.conversation import TrainOn
from packmamba.data.text.corpus import Corpus, tokenise
from packmamba.data.text.encode import RowError
from packmamba.data.text.show import about_conversations
from packmamba.errors import UsageError


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


def rows_to_train_on(
    lengths: np.ndarray,
    silent: np.ndarray,
    source: Source,
    policy: EmptyDocuments,
    *,
    warn: Callable[[str], object],
    first_row: int | None = None,
) -> np.ndarray:
    """int64: the rows of a corpus that have something to predict: neither empty after tokenisation, nor conversations
    in which the assistant says nothing. No other function decides about such documents.

    lengths, silent: (documents,), see `Corpus`. policy: `skip` calls `warn` with a message, `error` raises UsageError.
    first_row: where in a stream the corpus begins. How many rows follow is not known there, so the message names the
    first one that is left out; for a source that is read whole (None), it says how many are.
    """
    for left_out, one, many in (
        (lengths == 0, "is empty after tokenisation", "documents of {} are empty after tokenisation"),
        (
            silent,
            "has nothing that the assistant says",
            "conversations of {} have nothing that the assistant says",
        ),
    ):
        if not left_out.any():
            continue
        row = int(np.argmax(left_out))
        if first_row is None:
            message = f"{left_out.sum()} of {left_out.size} {many.format(source)}"
            which, others = f", the first is row {row}; drop them", ""
        else:
            message = f"row {first_row + row} of {source} {one}"
            which, others = "; drop such rows", ", and maybe others"
        if policy == "error":
            raise UsageError(f"{message}{which}, or set empty_documents='skip'")
        warn(f"{message}{others}; they are skipped")
    return np.flatnonzero((lengths > 0) & ~silent)


def require_conversations(dataset: Dataset, source: Source, train_on: TrainOn) -> None:
    """Raises UsageError where `train_on` chooses messages of training documents that are all plain text."""
    if train_on != "all_assistant" and dataset.column_names == ["text"]:
        raise UsageError(
            f"train_on={train_on!r} chooses messages of conversations, and {source} holds plain text: set its "
            "messages_column, or prompt_column and completion_column, or leave train_on out"
        )


class DocumentSplits:
    """Opens the documents of a split, from the cache where they have been tokenised before.

    A split without a source of its own takes the validation documents; validation without a source takes a part of the
    training source's documents, which training then leaves out.
    """

    def __init__(self, options: DataOptions) -> None:
        self.options = options
        self._datasets: dict[Split, Dataset] = {}
        self._corpora: dict[Split, Corpus] = {}
        self._kept: dict[Split, np.ndarray] = {}

    def of_stage(self, stage: str | None) -> tuple[Split, ...]:
        """The splits of a stage (`fit`, `validate`, `test`, `predict`); None: all."""
        validation = self.options.sources.validation
        return {
            "fit": ("train", *validation),
            "validate": validation,
            "test": ("test",),
            "predict": ("predict",),
            None: ("train", *validation, "test", "predict"),
        }[stage]

    def has_source(self, split: Split) -> bool:
        """Whether a split has a source. It has none where it would take those of validation, which are several."""
        sources = self.options.sources
        return split == "train" or sources.val_sources is None or sources.own(split) is not None

    def source_of(self, split: Split) -> Split:
        """The split whose source a split's documents come from."""
        sources = self.options.sources
        if sources.own(split) is not None:
            return split
        return "train" if sources.hold_out or split == "train" else "val"

    def source(self, split: Split) -> Source:
        """The source that a split's documents come from."""
        source = self.options.sources.own(self.source_of(split))
        assert source is not None
        return source

    def why_none(self, split: Split) -> str:
        """Why a split has no documents, and what would give it some."""
        if not self.has_source(split):
            sets = ", ".join(self.options.sources.validation)
            return f"there are several validation sets, {sets}, and no other {split} documents: set {split}_source"
        streamed = self.is_streamed("train")
        return f"there are no {split} documents: set {'' if streamed else 'val_fraction above 0, or '}{split}_source"

    def is_streamed(self, split: Split) -> bool:
        """Whether the source of a split is read while training goes on."""
        return self.has_source(split) and self.source(split).streaming

    def dataset(self, split: Split) -> Dataset:
        """The rows of the source of a split, at most `max_documents`; loaded once."""
        name = self.source_of(split)
        if name not in self._datasets:
            dataset = self.source(split).load(self.options.handling.cache_dir)
            most = self.options.documents.max_documents
            if most is not None and len(dataset) > most:
                dataset = dataset.select(range(most))
            self._datasets[name] = dataset
        return self._datasets[name]

    def corpus(self, split: Split) -> Corpus:
        """Every document of the source of a split, tokenised."""
        name = self.source_of(split)
        if name not in self._corpora:
            documents, handling = self.options.documents, self.options.handling
            source, dataset = self.source(split), self.dataset(split)
            if name == "train":
                require_conversations(dataset, source, documents.train_on)
            try:
                self._corpora[name] = tokenise(
                    dataset,
                    documents.tokenizer,
                    handling.cache_dir,
                    chat_template=self.options.sources.chat_template,
                    train_on=documents.train_on,
                    workers=handling.tokenizer_workers,
                )
            except RowError as error:
                raise UsageError(f"{source}, {error}") from error
        return self._corpora[name]

    def about_conversations(self, split: Split) -> str | None:
        """See `text.show.about_conversations`; of the whole source of a split."""
        return about_conversations(self.dataset(split), self.corpus(split), self.options.documents.tokenizer)

    def open(self, split: Split) -> Documents | None:
        """The documents of a split; None if it has none, because `val_fraction` is 0 and no source was given, or if its
        source is streamed, or one of several.

        Raises UsageError as `rows_to_train_on` does, for a source without any document to train on, if validation
        would leave none, or if no document has a token to predict.
        """
        if self.is_streamed(split) or not self.has_source(split):
            return None
        documents = self._opened(split)
        if documents is not None and documents.lengths.max() < 2:
            raise UsageError(
                f"every {split} document of {self.source(split)} is a single token, and nothing can be predicted; they "
                "need two at least"
            )
        most = self.options.handling.max_val_documents
        if documents is None or not split.startswith("val") or most is None or documents.rows.size <= most:
            return documents
        rank_zero_info(f"{split}: {most:,} of {documents.rows.size:,} documents, as data.max_val_documents says")
        generator = np.random.default_rng((self.options.order.seed, documents.rows.size, most))
        return Documents(documents.corpus, np.sort(generator.choice(documents.rows, most, replace=False)))

    def _opened(self, split: Split) -> Documents | None:
        """All documents of a split."""
        corpus = self.corpus(split)
        rows = self._rows(self.source_of(split))
        if self.source_of(split) != "train" or (split == "train" and not self.options.sources.hold_out):
            return Documents(corpus, rows)
        held_out = self._held_out(rows)
        if split == "train":
            return Documents(corpus, np.setdiff1d(rows, held_out, assume_unique=True))
        return Documents(corpus, held_out) if held_out.size else None

    def _rows(self, name: Split) -> np.ndarray:
        """The rows of a source that can be trained on; says once how many cannot."""
        if name not in self._kept:
            corpus, source = self.corpus(name), self.source(name)
            policy = self.options.handling.empty_documents
            self._kept[name] = rows_to_train_on(corpus.lengths, corpus.silent, source, policy, warn=rank_zero_warn)
            if not self._kept[name].size:
                raise UsageError(f"no document of {source} has a token to train on; it needs at least one")
        return self._kept[name]

    def _held_out(self, rows: np.ndarray) -> np.ndarray:
        fraction = self.options.documents.val_fraction
        if not fraction:
            return rows[:0]
        count = max(1, round(fraction * rows.size))
        if count >= rows.size:
            source = self.options.sources.train
            cut = ", or text_document=paragraph to cut a text file" if getattr(source, "text_document", "") else ""
            raise UsageError(
                f"val_fraction {fraction} takes {count} of the {rows.size} documents of {source}, which leaves none to "
                f"train on; set val_source, or val_fraction=0{cut}"
            )
        generator = np.random.default_rng((self.options.order.seed, rows.size))
        return np.sort(generator.choice(rows, count, replace=False))
