"""A look at the data before training: some documents tokenised, one pack in words, and the plan that all would make.

Sample: a hundred documents, spread evenly over a source that is loaded, or the first of one that is streamed. They are
tokenised in a folder of their own, so that the cache of the whole corpus is neither made nor changed.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from packmamba.data.collate import NO_DOCUMENT
from packmamba.data.datamodule import PackedDataModule
from packmamba.data.documents import Documents, rows_to_train_on
from packmamba.data.loader import PackedDataset
from packmamba.data.options import DataOptions
from packmamba.data.pack_documents import pack_documents
from packmamba.data.packers import Packs, pack
from packmamba.data.plan import PlanOptions, num_micro_steps
from packmamba.data.text.corpus import Corpus, is_tokenised, tokenise
from packmamba.data.text.encode import RowError
from packmamba.data.text.tokenizers import Tokenizer
from packmamba.errors import UsageError
from packmamba.packing import PackedBatch

SAMPLED = 100
"""Documents that are tokenised."""

TELLING = 4
"""Documents of the pack that is shown, or as near to so many as there is one."""

_RESAMPLED = 20_000
"""Documents at most that an estimate packs, drawn from the lengths of the sample."""


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of a document, all of which are to be predicted, or none of which are."""

    text: str
    tokens: int
    is_predicted: bool


@dataclass(frozen=True)
class PieceOfPack:
    """One document's part of a pack."""

    row: int
    """Of the source, or of the sample where the source is streamed."""
    tokens: int
    targets: int
    runs: list[Run]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch over the training documents, exact or estimated."""

    is_exact: bool
    documents: int | None
    """To train on; None for a stream, whose end is not known, and with it what follows."""
    tokens: int | None
    packs: int | None
    steps: int | None
    """Optimiser steps."""
    targets: float
    """The part of the tokens that is to be predicted."""
    tokens_per_step: float
    padding: float
    """The part of what is computed that is filler."""
    efficiency: float
    """How full packs are: tokens ÷ capacity."""
    split: float
    """The part of the documents that is cut, because they are longer than a pack."""
    uncertainty: float
    """The standard error of tokens, packs and steps, as a fraction of them; 0 where they are exact."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What `look_at` finds."""

    source: str
    sampled: int
    """Documents that were tokenised."""
    pieces: list[PieceOfPack]
    """The documents of one pack, in their order."""
    filler: int
    """Tokens of that pack that belong to no document."""
    epoch: Epoch
    val_documents: int | None
    """None where they are not known without tokenising them; 0 for no validation."""


def look_at(data: PackedDataModule, *, world_size: int, accumulation: int) -> Preview:
    """A preview of the training documents. world_size: ranks that take different data.

    Raises UsageError for documents that cannot be read or tokenised, as training would.
    """
    options = data.options
    source = options.sources.train
    plan = options.order.plan(seed=None, world_size=world_size, accumulation=accumulation)
    with tempfile.TemporaryDirectory(prefix="packmamba-") as folder:
        dataset, total = _sample_of(data)
        rows = np.arange(len(dataset)) if total is None else _spread(total)
        corpus = _tokenise(options, dataset, Path(folder))
        kept = rows_to_train_on(corpus.lengths, corpus.silent, source, "skip", warn=lambda message: None)
        if not kept.size:
            raise UsageError(f"none of {len(dataset)} documents of {source} has a token to train on")
        documents = Documents(corpus, kept)
        packs = _packs(options, documents)
        pieces, filler = _one_pack(data, documents, packs, rows)
        epoch, held_out = _epoch(data, documents, packs, len(dataset), total, plan)
    return Preview(
        source=str(source), sampled=len(dataset), pieces=pieces, filler=filler, epoch=epoch, val_documents=held_out
    )


# The sample


def _spread(total: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(SAMPLED, total)).astype(np.int64))


def _sample_of(data: PackedDataModule) -> tuple[Dataset, int | None]:
    """The documents of the sample, and how many there are of all; None: unknown."""
    source = data.options.sources.train
    if source.streaming:
        stream = source.stream()
        tables = list(_first_rows(stream.tables(range(stream.num_shards)), SAMPLED))
        if not tables:
            raise UsageError(f"{source} holds no row; there has to be at least one document")
        return Dataset(pa.concat_tables(tables, promote_options="default")), None
    dataset = data.splits.dataset("train")
    return dataset.select(_spread(len(dataset))), len(dataset)


def _first_rows(tables: Iterator[pa.Table], count: int) -> Iterator[pa.Table]:
    for table in tables:
        yield table.slice(0, count)
        count -= len(table)
        if count <= 0:
            return


def _tokenise(options: DataOptions, dataset: Dataset, folder: Path) -> Corpus:
    try:
        return tokenise(
            dataset,
            options.documents.tokenizer,
            folder,
            chat_template=options.sources.chat_template,
            train_on=options.documents.train_on,
            workers=0,
        )
    except RowError as error:
        raise UsageError(f"{options.sources.train}, {error} (counted among the sampled documents)") from error


def _packs(options: DataOptions, documents: Documents) -> Packs:
    """Packs of the sample by the strategy of the data module; `threshold_filtering` needs embeddings of all documents,
    so that another one stands for it."""
    strategy = options.packs.strategy
    strategy = "best_fit_decreasing" if strategy == "threshold_filtering" else strategy
    return pack_documents(options, documents, strategy=strategy, seed=options.order.shuffle_seed)


# One pack


def _one_pack(
    data: PackedDataModule, documents: Documents, packs: Packs, rows: np.ndarray
) -> tuple[list[PieceOfPack], int]:
    padding = {
        "pad_to": data.capacity if data.options.handling.pad_to_capacity else None,
        "pad_id": data.tokenizer.pad_id,
    }
    telling = int(np.argmin(np.abs(packs.num_pieces - TELLING)))
    batch = PackedDataset(documents, packs, data.options.order.plan(seed=None), **padding)[telling]
    assert batch.doc_ids is not None
    assert batch.real_lengths is not None
    begins = batch.packing.cu_seqlens.tolist()
    pieces = []
    for doc, begin, length in zip(batch.doc_ids.tolist(), begins, batch.real_lengths.tolist(), strict=False):
        if doc == NO_DOCUMENT:
            continue
        ids = batch.input_ids[begin : begin + length].numpy()
        # A label stands one position before the token that it asks for.
        predicted = (batch.labels[begin : begin + length - 1] != PackedBatch.IGNORE_INDEX).numpy()
        # The first token, which never is, goes with the second.
        shown = np.append(predicted[:1] if predicted.size else False, predicted)
        pieces.append(PieceOfPack(int(rows[doc]), length, int(predicted.sum()), _runs(data.tokenizer, ids, shown)))
    return pieces, batch.num_padding


def _runs(tokenizer: Tokenizer, ids: np.ndarray, predicted: np.ndarray) -> list[Run]:
    runs, begin = [], 0
    for is_predicted, group in itertools.groupby(predicted.tolist()):
        end = begin + len(list(group))
        runs.append(Run(_decoded(tokenizer, ids[begin:end]), end - begin, is_predicted))
        begin = end
    return runs


def _decoded(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of some tokens, with BOS and EOS, which `decode` leaves out, named."""
    names = {tokenizer.bos_id: "<BOS>", tokenizer.eos_id: "<EOS>"}
    special = tokenizer.special_tokens
    for name, key in (("bos_id", "bos_token"), ("eos_id", "eos_token")):
        if key in special:
            names[getattr(tokenizer, name)] = special[key]
    framing = [token for token in names if token is not None]
    texts, begin = [], 0
    for place in np.flatnonzero(np.isin(ids, framing)).tolist():
        texts += [tokenizer.decode(ids[begin:place]) if place > begin else "", names[int(ids[place])]]
        begin = place + 1
    return "".join([*texts, tokenizer.decode(ids[begin:]) if begin < ids.size else ""])


# The epoch


def _epoch(
    data: PackedDataModule, sample: Documents, packs: Packs, sampled: int, total: int | None, plan: PlanOptions
) -> tuple[Epoch, int | None]:
    """The epoch over all documents, and how many are validated on."""
    options = data.options
    if total is not None and _are_tokenised(data):
        data.setup("fit")
        documents, packs = data.documents("train"), data.packs("train")
        validated = (data.splits.open(split) for split in options.sources.validation)
        held_out = sum(documents.rows.size for documents in validated if documents is not None)
        return _described(packs, documents.lengths, documents.rows.size, plan, is_exact=True), held_out
    kept: float | None = None
    held_out = 0 if options.sources.hold_out else None
    if total is not None:
        kept = total * sample.rows.size / sampled
        if options.sources.hold_out and options.documents.val_fraction:
            held_out = max(1, round(options.documents.val_fraction * kept))
            kept -= held_out
            held_out = min(held_out, options.handling.max_val_documents or held_out)
    drawn = min(_RESAMPLED, _RESAMPLED if kept is None else max(1, round(kept)))
    lengths = np.random.default_rng(0).choice(sample.lengths, drawn)
    drawn_packs = pack(
        lengths, data.capacity, packs.strategy, seed=options.order.shuffle_seed, buffer=options.packs.buffer
    )
    rate = packs.num_targets.sum() / sample.lengths.sum()
    spread = float(sample.lengths.std() / sample.lengths.mean() / math.sqrt(sample.lengths.size))
    epoch = _described(drawn_packs, lengths, kept, plan, is_exact=False, targets_a_token=rate, uncertainty=spread)
    return epoch, held_out


def _are_tokenised(data: PackedDataModule) -> bool:
    """Whether all documents of training and validation are in the cache."""
    sources, documents = data.options.sources, data.options.documents
    how = {"chat_template": sources.chat_template, "train_on": documents.train_on}
    return all(
        is_tokenised(data.splits.dataset(split), documents.tokenizer, data.options.handling.cache_dir, **how)
        for split in ("train", *sources.validation)
    )


def _described(
    packs: Packs,
    lengths: np.ndarray,
    documents: float | None,
    plan: PlanOptions,
    *,
    is_exact: bool,
    targets_a_token: float | None = None,
    uncertainty: float = 0.0,
) -> Epoch:
    """An epoch over so many documents, of which these are all, or a part, with these lengths and packs."""
    scale = None if documents is None else documents / lengths.size
    tokens, targets = int(lengths.sum()), int(packs.num_targets.sum())
    if targets_a_token is not None:
        targets = round(targets_a_token * tokens)
    num_packs = None if scale is None else math.ceil(len(packs) * scale)
    steps = None if num_packs is None else -(-num_micro_steps(num_packs, plan) // plan.accumulation)
    return Epoch(
        is_exact=is_exact,
        documents=None if documents is None else round(documents),
        tokens=None if scale is None else round(tokens * scale),
        packs=num_packs,
        steps=steps,
        targets=targets / tokens,
        tokens_per_step=tokens / len(packs) * plan.world_size * plan.accumulation,
        padding=packs.padding_fraction,
        efficiency=packs.efficiency,
        split=packs.num_split / lengths.size,
        uncertainty=uncertainty,
    )
