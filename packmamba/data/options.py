"""The options of `PackedDataModule`, grouped by stage.

Fingerprint: the options that a resumed run must repeat, because the order of documents depends on them. It is made of
the fields of `DocumentOptions`, `PackOptions` and `OrderOptions`, all of them, so that a new option cannot be missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from packmamba.data.cache import file_digest
from packmamba.data.embedding_files import open_embeddings
from packmamba.data.packers import LongDocuments, Strategy, ThresholdFiltering, check_options
from packmamba.data.plan import Balance, PlanOptions
from packmamba.data.sources import Source
from packmamba.data.text.chat import ChatTemplate
from packmamba.data.text.conversation import TRAIN_ON, TrainOn
from packmamba.data.text.tokenizers import Tokenizer
from packmamba.errors import UsageError
from packmamba.visible_pairs import AttentionCost

Split = str
"""`train`, `val`, `test`, `predict`, or `val/NAME`, one of several validation sets."""
SPLITS: tuple[Split, ...] = ("train", "val", "test", "predict")

EmptyDocuments = Literal["skip", "error"]

MOST_TOKENS = 2**31 - 1
"""Of a pack: documents' boundaries are int32."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where documents come from. A resumed run compares hashes of the texts instead (`Corpus.digests`), so that files
    may move.

    Raises UsageError for a streamed source of a split that cannot be streamed.
    """

    train: Source
    """Documents to train on."""
    val: Source | None = None
    """Documents to validate on; None: a part of the training documents."""
    val_sources: Mapping[str, Source] | None = None
    """Several sets of documents to validate on, by name; then `val` is None."""
    test: Source | None = None
    """Documents to test on; None: those of validation."""
    predict: Source | None = None
    """Documents to predict on; None: those of validation."""
    chat_template: str | None = None
    """A Jinja file that writes conversations out; None: the tokenizer's own, or else ChatML."""

    def __post_init__(self) -> None:
        if self.val_sources is not None:
            self._check_names(self.val_sources)
        for split in (*SPLITS[1:], *self.validation):
            if (other := self.own(split)) is not None and other.streaming:
                _, _, name = split.partition("/")
                option = f"val_sources.{name}" if name else f"{split}_source"
                raise UsageError(
                    f"{option} {other} cannot be streamed, only training documents can; set its streaming to "
                    "false, and max_documents if it is large"
                )

    def _check_names(self, sources: Mapping[str, Source]) -> None:
        if self.val is not None:
            raise UsageError("val_source and val_sources are both given; put the one among the others, by a name")
        if not sources:
            raise UsageError("val_sources is empty; name at least one source, or leave it out")
        for name in sources:
            if not re.fullmatch(r"[\w.-]+", name):
                raise UsageError(
                    f"val_sources has a set called {name!r}; a name is made of letters, digits, '_', '-' and '.', for "
                    "its loss is logged as val/NAME/loss"
                )

    @property
    def validation(self) -> tuple[Split, ...]:
        """The splits that validation has: `val`, or one for each of several sets."""
        return ("val",) if self.val_sources is None else tuple(f"val/{name}" for name in self.val_sources)

    @property
    def hold_out(self) -> bool:
        """Whether validation gets a part of the training source, because it has no source of its own."""
        return self.val is None and self.val_sources is None

    def own(self, split: Split) -> Source | None:
        """The source that was given for a split."""
        if split.startswith("val/"):
            return None if self.val_sources is None else self.val_sources[split.removeprefix("val/")]
        return getattr(self, split)


@dataclass(frozen=True, kw_only=True)
class DocumentOptions:
    """Which documents of their source are trained on, and as which tokens.

    Raises UsageError for a number out of range.
    """

    streaming: bool = False
    """Whether the training documents are read while training goes on."""
    section_documents: int | None = 16384
    """Documents of a stream that are shuffled and packed together."""
    max_documents: int | None = None
    """Use only the first so many documents of each source; None: all."""
    val_fraction: float | None = 0.05
    """The part of the training source that validation gets where it has no source of its own."""
    tokenizer: Tokenizer
    """Text to token ids."""
    train_on: TrainOn = "all_assistant"
    """Which of the assistant's messages have a loss."""

    def __post_init__(self) -> None:
        if self.train_on not in TRAIN_ON:
            raise UsageError(f"unknown train_on {self.train_on!r}; available: {', '.join(TRAIN_ON)}")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise UsageError(f"val_fraction must be at least 0 and below 1, got {self.val_fraction}")
        for name in ("max_documents", "section_documents"):
            _require_at_least(1, name, getattr(self, name))

    def in_effect(self, sources: SourceOptions) -> DocumentOptions:
        """The same, with None for options that do not matter to these sources."""
        kept = self if sources.hold_out else replace(self, val_fraction=None)
        # Documents that are loaded are hashed after `max_documents` has been applied.
        return kept if self.streaming else replace(kept, section_documents=None, max_documents=None)


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How documents are put into packs.

    Raises UsageError for an unknown strategy or a number out of range, UsageTypeError for one that is not an integer.
    """

    strategy: Strategy = "best_fit_decreasing"
    """How documents are put into packs; see `packmamba.data.packers`."""
    capacity: int = 4096
    """Tokens a pack can hold."""
    buffer: int = 1024
    """Documents that the strategy `local_greedy` looks at."""
    threshold_filtering: ThresholdFiltering | None = None
    """How the strategy of this name chooses the next document; None: by its defaults."""
    embeddings: str | None = None
    """A .npy file with one row of numbers for each document of the training source; None: made from the tokens."""

    def __post_init__(self) -> None:
        check_options(self.strategy, 2, self.buffer)
        check_options(self.strategy, max(1, self.capacity) if isinstance(self.capacity, int) else self.capacity)
        if not 2 <= self.capacity <= MOST_TOKENS:
            raise UsageError(
                f"capacity must be from 2 tokens, of which one is predicted, to {MOST_TOKENS:,}, got {self.capacity:,}"
            )

    def in_effect(self) -> PackOptions:
        """The same, with None for options that the strategy does not look at, and a hash in place of a file."""
        if self.strategy != "threshold_filtering":
            return replace(self, threshold_filtering=None, embeddings=None)
        return self if self.embeddings is None else replace(self, embeddings=file_digest(self.embeddings))


@dataclass(frozen=True, kw_only=True)
class OrderOptions:
    """Which rank trains on which pack, and when.

    Raises UsageError for an unknown balance or a negative seed, UsageTypeError for attention costs that are none.
    """

    shuffle: bool = True
    """Train on documents and packs in a random order, a new one each epoch."""
    seed: int = 0
    """Seed of the shuffling and of the validation split."""
    balance: Balance = "tokens"
    """The quantity that ranks get even shares of within an optimiser step; see `PlanOptions`."""
    attention_costs: tuple[AttentionCost, ...] | None = ()
    """The cost of attention, an entry for each window; only balance `flops` looks at it."""

    def __post_init__(self) -> None:
        self.plan()
        _require_at_least(0, "seed", self.seed)

    @property
    def shuffle_seed(self) -> int | None:
        """The seed, or None where nothing is shuffled."""
        return self.seed if self.shuffle else None

    def plan(self, **options: Any) -> PlanOptions:
        """The options of an epoch's plan. options: further fields of `PlanOptions`."""
        return PlanOptions(balance=self.balance, attention_costs=self.attention_costs or (), **options)

    def in_effect(self) -> OrderOptions:
        """The same, without costs that nothing looks at."""
        return self if self.balance == "flops" else replace(self, attention_costs=None)


@dataclass(frozen=True, kw_only=True)
class HandlingOptions:
    """Refusing documents, filling batches up, and the number of processes. Nothing here can change which documents come
    when, so none of it is in the fingerprint.

    Raises UsageError for a number below 0 or an unknown way to treat documents.
    """

    empty_documents: EmptyDocuments = "skip"
    """`skip` documents without a token to train on, or raise an `error`; see `rows_to_train_on`."""
    long_documents: LongDocuments = "split"
    """`split` documents longer than a pack, or raise an `error`."""
    pad_to_capacity: bool = False
    """Fill every batch to exactly `capacity` tokens, with one sequence that has no targets."""
    num_workers: int = 0
    """Processes that prepare batches; 0: the training process."""
    tokens_per_step: int | None = None
    """Tokens of an optimiser step, as accumulate_grad_batches makes them; a resumed run may have another number."""
    tokenizer_workers: int | None = None
    """Processes that tokenise; 0: the main process alone; None: as many as help."""
    cache_dir: Path
    """Folder for tokenised documents."""
    max_val_documents: int | None = None
    """Validate on at most so many documents, whole ones, drawn by the seed; None: all. Training leaves out the same
    documents either way."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "tokenizer_workers"):
            _require_at_least(0, name, getattr(self, name))
        _require_at_least(1, "max_val_documents", self.max_val_documents)
        _require_at_least(1, "tokens_per_step", self.tokens_per_step)
        if self.empty_documents not in get_args(EmptyDocuments):
            raise UsageError(f"unknown empty_documents {self.empty_documents!r}; available: skip, error")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """All options of a data module. Raises UsageError for options that do not go together, and for files that they name
    and that cannot be read."""

    sources: SourceOptions
    documents: DocumentOptions
    packs: PackOptions
    order: OrderOptions
    handling: HandlingOptions

    def __post_init__(self) -> None:
        source, fraction = self.sources.train, self.documents.val_fraction
        check_options(self.packs.strategy, self.packs.capacity, self.packs.buffer, self.handling.long_documents)
        if self.packs.embeddings is not None:
            if source.streaming:
                raise UsageError(
                    f"embeddings={self.packs.embeddings!r} name rows of a source that is read whole; {source} is "
                    "streamed"
                )
            open_embeddings(self.packs.embeddings)
        if self.sources.chat_template is not None:
            ChatTemplate.of(self.documents.tokenizer, self.sources.chat_template)
        if self.handling.tokens_per_step is not None and self.packs.strategy == "single":
            raise UsageError(
                "tokens_per_step counts full packs, and strategy 'single' makes none; leave one of them out"
            )
        if not fraction or not self.sources.hold_out:
            return
        if source.repeats_documents:
            raise UsageError(
                f"val_fraction {fraction} would validate on documents that are trained on, because {source} repeats "
                "them; set val_source, or val_fraction=0, or stopping_strategy='first_exhausted'"
            )
        if source.streaming:
            raise UsageError(
                f"val_fraction {fraction} is a part of a stream whose length is not known; set val_source, or "
                "val_fraction=0 for no validation"
            )

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The options that the order of documents depends on, by the name a user knows each by, as plain values."""
        groups = (self.documents.in_effect(self.sources), self.packs.in_effect(), self.order.in_effect())
        return {name: value for group in groups for name, value in _plain(group).items()}


def _plain(value: Any) -> Any:
    """A value as a checkpoint keeps it: dicts, lists, numbers, text."""
    if isinstance(value, Tokenizer):
        return value.fingerprint
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _require_at_least(least: int, name: str, value: int | None) -> None:
    if value is not None and value < least:
        raise UsageError(f"{name} must be at least {least}, got {value}")
