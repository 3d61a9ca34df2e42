"""Documents to packed batches for Lightning: split, tokenise, pack, plan, load, and resume where training stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from packmamba.data.cache import DEFAULT_CACHE_DIR, progress_bar
from packmamba.data.documents import SPLITS, Documents, DocumentSplits, EmptyDocuments, Split
from packmamba.data.embeddings import file_digest, ngram_embeddings_of, read_embeddings
from packmamba.data.loader import PackedDataset, PackLoader, PlannedDataset, PlanSampler, Position
from packmamba.data.packers import (
    LongDocuments,
    Packs,
    Strategy,
    ThresholdFiltering,
    check_options,
    pack,
    refuse_long_documents,
)
from packmamba.data.plan import Balance, PlanOptions
from packmamba.data.resume.progress import TrainingProgress, check_trainer, require_same
from packmamba.data.resume.sections import Section, Sections, SectionWriter, open_sections
from packmamba.data.resume.streamed import StreamedDataset
from packmamba.data.sources import PythonDocs, Source
from packmamba.data.text.tokenizers import ByteTokenizer, Tokenizer
from packmamba.errors import UsageError

_SPLITS_OF: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
    None: SPLITS,
}

_PYTHON_DOCS = PythonDocs()
_BYTES = ByteTokenizer()
_FILTERING = ThresholdFiltering()


class PackedDataModule(LightningDataModule):
    """Packed batches of documents, for `Trainer.fit`, `validate`, `test` and `predict`, and for plain Python loops.

    Every loader yields `PackedBatch`; `doc_ids` are rows of the split's source. A new epoch shuffles the packs anew.
    Checkpoints hold the position in the data: a resumed run goes on with the first batch that was not trained on.

    Without a Trainer: `setup()`, then `dataset("train")` is a sequence of batches, or `train_dataloader()` a loader
    whose `sampler.set_epoch(e)` chooses the epoch. `seek` says how much is consumed, so that `state_dict` can save it.
    """

    def __init__(
        self,
        *,
        source: Source = _PYTHON_DOCS,
        val_source: Source | None = None,
        test_source: Source | None = None,
        predict_source: Source | None = None,
        val_fraction: float = 0.05,
        tokenizer: Tokenizer = _BYTES,
        chat_template: str | None = None,
        tokenizer_workers: int | None = None,
        capacity: int = 4096,
        strategy: Strategy = "best_fit_decreasing",
        buffer: int = 1024,
        long_documents: LongDocuments = "split",
        threshold_filtering: ThresholdFiltering = _FILTERING,
        embeddings: str | None = None,
        shuffle: bool = True,
        seed: int = 0,
        balance: Balance = "tokens",
        attention_cost: float = 0.0,
        attention_window: int | None = None,
        pad_to_capacity: bool = False,
        max_documents: int | None = None,
        empty_documents: EmptyDocuments = "skip",
        section_documents: int = 16384,
        num_workers: int = 0,
        cache_dir: str = str(DEFAULT_CACHE_DIR),
    ) -> None:
        """Describes the data; nothing is read before `prepare_data` or `setup`.

        Args:
            source: Documents to train on: PythonDocs, Files, DatasetFolder, HubDataset, Mixture, or made-up ones.
            val_source: Documents to validate on. Unset: a part of `source`, which is then not trained on.
            test_source: Documents to test on. Unset: those of validation.
            predict_source: Documents to predict on. Unset: those of validation.
            val_fraction: Which part of `source` validation gets when `val_source` is unset, at least one document;
                0 for no validation. The seed decides which documents.
            tokenizer: Text to token ids: ByteTokenizer, BPETokenizer or HFTokenizer.
            chat_template: A Jinja file that writes conversations out. Unset: the tokenizer's own, or else ChatML.
            tokenizer_workers: Processes that tokenise; 0 for the main process alone. Unset: as many as there are CPUs,
                where there is much to do and the tokenizer has no threads of its own.
            capacity: Tokens a pack can hold.
            strategy: How documents are put into packs.
            buffer: Documents that the strategy `local_greedy` looks at.
            long_documents: What to do about documents longer than `capacity`: `split` cuts them every `capacity`
                tokens, nothing is truncated; `error` refuses them.
            threshold_filtering: How the strategy of this name chooses the next document.
            embeddings: A .npy file with one row of numbers for each document of `source`, which the strategy
                `threshold_filtering` compares; unset: they are computed from the tokens' n-grams.
            shuffle: Train on documents and packs in a random order, a new one each epoch.
            seed: Seed of the shuffling and of the validation split.
            balance: What ranks get even shares of within an optimiser step: `tokens`, or `flops`, which counts
                attention's quadratic cost too; `none` takes packs as they come.
            attention_cost: FLOPs of one (query, key) pair of attention, as a multiple of a token's FLOPs everywhere
                else; 0 for a model without attention. Only balance `flops` looks at it.
            attention_window: Tokens of its document that a token's attention sees; null: all before it.
            pad_to_capacity: Fill every batch to exactly `capacity` tokens, with one sequence that has no targets.
            max_documents: Use only the first so many documents of each source.
            empty_documents: What to do about documents without a token, and conversations in which the assistant says
                nothing: `skip` them, with a count, or raise an `error`.
            section_documents: Documents of a streamed source that are shuffled and packed together. Make it worth many
                optimiser steps: the last step of each section is a smaller one.
            num_workers: Processes that prepare batches; 0 prepares them in the training process.
            cache_dir: Folder for tokenised documents, so that a second run starts at once.

        Raises:
            ValueError: A number out of range, or an unknown strategy, balance or way to treat empty documents.
        """
        super().__init__()
        if num_workers < 0:
            raise UsageError(f"num_workers must be at least 0, got {num_workers}")
        check_options(strategy, capacity, buffer, long_documents)
        if section_documents < 1:
            raise UsageError(f"section_documents must be at least 1, got {section_documents}")
        if source.streaming and embeddings is not None:
            raise UsageError(
                f"embeddings={embeddings!r} name rows of a source that is read whole; {source} is streamed"
            )
        self.splits = DocumentSplits(
            {"train": source, "val": val_source, "test": test_source, "predict": predict_source},
            tokenizer,
            val_fraction=val_fraction,
            seed=seed,
            max_documents=max_documents,
            empty_documents=empty_documents,
            chat_template=chat_template,
            tokenizer_workers=tokenizer_workers,
            cache_dir=Path(cache_dir).expanduser(),
        )
        self.tokenizer = tokenizer
        self.capacity = capacity
        self.strategy: Strategy = strategy
        self.buffer = buffer
        self.long_documents: LongDocuments = long_documents
        self.threshold_filtering = threshold_filtering
        self.embeddings = embeddings
        self.shuffle = shuffle
        self.seed = seed
        self.balance: Balance = balance
        self.attention_cost = attention_cost
        self.attention_window = attention_window
        self.pad_to_capacity = pad_to_capacity
        self.num_workers = num_workers
        self.section_documents = section_documents
        self._plan = PlanOptions(balance=balance, attention_cost=attention_cost, attention_window=attention_window)
        self._padding = {"pad_to": capacity if pad_to_capacity else None, "pad_id": tokenizer.pad_id}
        self._sections: Sections | None = None
        self._documents: dict[Split, Documents | None] = {}
        self._packs: dict[tuple[Split, str], Packs] = {}
        self._progress = TrainingProgress(lambda: self.trainer)
        self._saved_fingerprint: dict[str, Any] | None = None
        self._saved_documents: dict[str, str | None] = {}
        self._saved_position = Position()

    @property
    def vocab_size(self) -> int:
        """Every token id is smaller; a model needs at least as many rows of embedding."""
        return self.tokenizer.vocab_size

    # Documents and packs

    def prepare_data(self) -> None:
        """Loads and tokenises what the trainer is about to need into the cache, in one process."""
        stage = None if self.trainer is None or self.trainer.state.fn is None else self.trainer.state.fn.value
        for split in _SPLITS_OF[stage]:
            if not self.splits.is_streamed(split):
                self.splits.corpus(split)

    def setup(self, stage: str | None = None) -> None:
        """Opens the documents of a stage (`fit`, `validate`, `test`, `predict`), or of all."""
        if stage == "fit" and self._progress.reset():
            self._saved_fingerprint, self._saved_documents = None, {}
        for split in _SPLITS_OF[stage]:
            if split not in self._documents and not (split == "train" and self._streamed):
                self._documents[split] = self.splits.open(split)

    def teardown(self, stage: str) -> None:
        """Deletes the sections of a streamed source."""
        if self._sections is not None and stage == "fit":
            self._sections.close()
            self._sections = None

    @property
    def _streamed(self) -> bool:
        return self.splits.is_streamed("train")

    def documents(self, split: Split = "train") -> Documents:
        """The documents of a split. Raises RuntimeError before `setup`, ValueError if the split has none."""
        if split == "train" and self._streamed:
            raise UsageError(
                "the training documents are streamed, so they are not known ahead: iterate over train_dataloader(), or "
                "set the source's streaming to false"
            )
        if split not in self._documents:
            raise RuntimeError(f"the {split} documents are not there yet; call setup() first")
        documents = self._documents[split]
        if documents is None:
            how = f"{split}_source" if self._streamed else f"val_fraction above 0, or {split}_source"
            raise UsageError(f"there are no {split} documents: set {how}")
        return documents

    def packs(self, split: Split = "train", strategy: Strategy | None = None) -> Packs:
        """The packs of a split, by the data module's strategy or another one. They number `documents(split).rows`."""
        strategy = strategy or self.strategy
        if (split, strategy) not in self._packs:
            documents = self.documents(split)
            embeddings = self.embeddings_of(split) if strategy == "threshold_filtering" else None
            seed = self.seed if self.shuffle and split == "train" else None
            started = time.perf_counter()
            packs = self._pack(documents, strategy, seed, embeddings)
            seconds = time.perf_counter() - started
            rank_zero_info(
                f"{split}: {documents.rows.size:,} documents, {documents.lengths.sum():,} tokens in {len(packs):,} "
                f"packs of {self.capacity} ({packs.efficiency:.2%} full, {packs.num_split} documents split), "
                f"{strategy}, {seconds:.2f} s"
            )
            self._packs[split, strategy] = documents.with_targets(packs)
        return self._packs[split, strategy]

    def _pack(self, documents: Documents, strategy: Strategy, seed: int | None, embeddings: np.ndarray | None) -> Packs:
        if self.long_documents == "error":
            refuse_long_documents(documents.lengths, self.capacity, documents.rows)
        with progress_bar() as progress:
            task = progress.add_task("Packing", total=documents.rows.size, visible=embeddings is not None)
            return pack(
                documents.lengths,
                self.capacity,
                strategy,
                seed=seed,
                buffer=self.buffer,
                embeddings=embeddings,
                filtering=self.threshold_filtering,
                advance=lambda count: progress.advance(task, count),
            )

    def _pack_section(self, documents: Documents, number: tuple[int, int]) -> Packs:
        """number: of the epoch and the section."""
        seed = int(np.random.SeedSequence((self.seed, *number)).generate_state(1)[0]) if self.shuffle else None
        embeddings = None
        if self.strategy == "threshold_filtering":
            embeddings = ngram_embeddings_of(documents, self.vocab_size, documents.corpus.folder)
        return documents.with_targets(self._pack(documents, self.strategy, seed, embeddings))

    @cached_property
    def _embeddings_digest(self) -> str | None:
        return None if self.embeddings is None else file_digest(self.embeddings)

    def embeddings_of(self, split: Split) -> np.ndarray:
        """What `threshold_filtering` compares the documents of a split by, (documents, any)."""
        if self.embeddings is not None and self.splits.source_of(split) == "train":
            return read_embeddings(self.embeddings, self.documents(split))
        return ngram_embeddings_of(self.documents(split), self.vocab_size, self.splits.cache_dir)

    def dataset(
        self,
        split: Split = "train",
        *,
        strategy: Strategy | None = None,
        world_size: int = 1,
        rank: int = 0,
        accumulation: int = 1,
    ) -> PackedDataset:
        """The batches of one rank: a sequence, `len` and index, of the first epoch; see `PackedDataset` for others.

        strategy: another one than the data module's, to compare on the same documents. world_size, rank, accumulation:
        see `PlanOptions`.
        """
        documents = self.documents(split)
        shuffled = self.shuffle and split == "train"
        options = replace(self._plan, seed=self.seed if shuffled else None, world_size=world_size)
        options = replace(options, accumulation=accumulation)
        return PackedDataset(documents, self.packs(split, strategy), options, rank=rank, **self._padding)

    # Loaders

    def train_dataloader(self) -> PackLoader:
        """Batches from where training stands to the end of its epoch.

        Raises ValueError if a checkpoint was loaded and its data, tokenizer or plan are not those of now, naming what
        changed; or for options of the Trainer that leave the number of targets of a step unknown.
        """
        world_size, rank = self._replicas()
        accumulation, limit = 1, 1.0
        if self.trainer is not None:
            check_trainer(self.trainer, world_size, streamed=self._streamed)
            accumulation, limit = self.trainer.accumulate_grad_batches, self.trainer.limit_train_batches
        dataset: PlannedDataset
        if self._streamed:
            dataset = self._streamed_dataset(world_size, rank, accumulation)
        else:
            dataset = self.dataset("train", world_size=world_size, rank=rank, accumulation=accumulation)
            if isinstance(limit, int) or limit < 1.0:  # to Lightning 1 is one batch, and 1.0 are all of them
                dataset = dataset.shortened(max(1, limit if isinstance(limit, int) else int(limit * len(dataset))))
        self._progress.dataset = dataset
        if self._saved_fingerprint is not None:
            # A stream's documents are not known yet.
            documents = ({}, {}) if self._streamed else (self._saved_documents, dataset.digests(Position()))
            require_same(self._saved_fingerprint | documents[0], self._fingerprint() | documents[1])
        return self._loader(dataset, self._progress.start, self._progress.set_epoch)

    def _streamed_dataset(self, world_size: int, rank: int, accumulation: int) -> StreamedDataset:
        if self._sections is None:
            self._sections = open_sections(self.trainer, self.splits.cache_dir, self._section_writer)
        options = replace(self._plan, seed=self.seed if self.shuffle else None, world_size=world_size)
        return StreamedDataset(
            self._sections,
            replace(options, accumulation=accumulation, whole_steps=True),
            rank=rank,
            # What each worker has been asked for ahead, what Lightning has taken, and what another rank may lag behind.
            prefetched=2 * self.num_workers + 2 + accumulation,
            check=self._check_section,
            **self._padding,
        )

    def _section_writer(self, folder: Path) -> SectionWriter:
        return SectionWriter(
            folder,
            self.splits.source("train"),
            self.tokenizer,
            self._pack_section,
            size=self.section_documents,
            seed=self.seed if self.shuffle else None,
            max_documents=self.splits.max_documents,
            empty_documents=self.splits.empty_documents,
            chat_template=self.splits.chat_template,
        )

    def val_dataloader(self) -> PackLoader | list[PackLoader]:
        """Batches of the validation documents in a fixed order; an empty list if there are none."""
        if "val" in self._documents and self._documents["val"] is None:
            return []
        return self._eval_loader("val")

    def test_dataloader(self) -> PackLoader:
        """Batches of the test documents in a fixed order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> PackLoader:
        """Batches of the documents to predict on in a fixed order."""
        return self._eval_loader("predict")

    def _eval_loader(self, split: Split) -> PackLoader:
        world_size, rank = self._replicas()
        return self._loader(self.dataset(split, world_size=world_size, rank=rank), Position)

    def _loader(
        self,
        dataset: PlannedDataset,
        position: Callable[[], Position],
        set_epoch: Callable[[int], None] | None = None,
    ) -> PackLoader:
        return PackLoader(
            dataset,
            batch_size=None,
            sampler=PlanSampler(dataset, position, set_epoch),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def _replicas(self) -> tuple[int, int]:
        """How many ranks take different data, and which of them this is."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (1, 0) if kwargs is None else (kwargs["num_replicas"], kwargs["rank"])

    # Position and resume

    @property
    def position(self) -> Position:
        """Where training stands, by complete optimiser steps; prefetched batches do not count."""
        return self._progress.position

    def seek(self, epoch: int, packs: int = 0, *, section: int = 0) -> None:
        """The next iteration over the training loader starts behind so many packs of the epoch, or of a section of a
        streamed source, which without a Trainer is so many batches. A Trainer does this itself."""
        self._progress.seek(Position(epoch, section, packs))

    def state_dict(self) -> dict[str, Any]:
        """The position and what it refers to; the same on every rank. Empty where nothing was trained on."""
        if self._progress.dataset is None:
            return {}
        documents = self._progress.dataset.digests(self._progress.position)
        return self._progress.state_dict() | {"fingerprint": self._fingerprint(), "documents": documents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the position of a checkpoint; whether the data are the same is checked when the loader is made, or when
        they are read from a stream. The number of ranks and `accumulate_grad_batches` may be others: they share what is
        left of the epoch."""
        self._progress.load_state_dict(state_dict)
        self._saved_position = self._progress.position
        self._saved_fingerprint, self._saved_documents = state_dict["fingerprint"], state_dict["documents"]

    def _check_section(self, position: Position, section: Section) -> None:
        options = None if self._progress.dataset is None else self._progress.dataset.options
        if options is not None and not section.is_last and position.section == 0:
            step = options.world_size * options.accumulation
            if section.num_packs < step:
                rank_zero_warn(
                    f"a section of {self.section_documents} documents has {section.num_packs} packs, fewer than the "
                    f"{step} of an optimiser step; raise section_documents"
                )
        if self._saved_documents and self._saved_position[:2] == position[:2]:
            where = f" from row {section.first_row:,} of the stream on"
            then, now = (
                {f"{name}{where}": v for name, v in x.items()} for x in (self._saved_documents, section.digests)
            )
            require_same(then, now)

    def _fingerprint(self) -> dict[str, Any]:
        """What the order of documents depends on beside themselves, by the name a user knows it by."""
        filtering = self.strategy == "threshold_filtering"
        return {
            "streaming": self._streamed,
            "section_documents": self.section_documents if self._streamed else None,
            "max_documents": self.splits.max_documents if self._streamed else None,
            "tokenizer": self.tokenizer.fingerprint,
            "val_fraction": self.splits.val_fraction if self.splits.sources["val"] is None else None,
            "strategy": self.strategy,
            "capacity": self.capacity,
            "buffer": self.buffer,
            "threshold_filtering": asdict(self.threshold_filtering) if filtering else None,
            "embeddings": self._embeddings_digest if filtering else None,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "balance": self.balance,
            "attention_cost": self.attention_cost if self.balance == "flops" else None,
            "attention_window": self.attention_window if self.balance == "flops" else None,
        }
