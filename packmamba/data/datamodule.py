"""Documents to packed batches for Lightning: split, tokenise, pack, plan, load, and resume where training stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from packmamba.data.cache import DEFAULT_CACHE_DIR
from packmamba.data.documents import Documents, DocumentSplits
from packmamba.data.embeddings import read_embeddings
from packmamba.data.loader import PackedDataset, PackLoader, PlannedDataset, PlanSampler, pack_loader
from packmamba.data.options import (
    DataOptions,
    DocumentOptions,
    EmptyDocuments,
    HandlingOptions,
    OrderOptions,
    PackOptions,
    SourceOptions,
    Split,
)
from packmamba.data.pack_documents import embed, pack_documents
from packmamba.data.packers import LongDocuments, Packs, Strategy, ThresholdFiltering
from packmamba.data.plan import Balance
from packmamba.data.position import Origin, Position
from packmamba.data.resume.evaluated import compare_evaluated, limit_to_whole_documents
from packmamba.data.resume.fingerprint import SavedData, require_same, translated
from packmamba.data.resume.progress import (
    TrainingProgress,
    TrainingSampler,
    accumulate,
    check_trainer,
    count_validation_over_epochs,
    move,
)
from packmamba.data.resume.sections import Sections, open_sections
from packmamba.data.resume.streamed import StreamedDataset
from packmamba.data.sources import PythonDocs, Source
from packmamba.data.text.conversation import TrainOn
from packmamba.data.text.tokenizers import ByteTokenizer, Tokenizer
from packmamba.errors import UsageError
from packmamba.training.lightning_compat import batches_trained, current_stage, data_ranks
from packmamba.visible_pairs import AttentionCost

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
        val_sources: dict[str, Source] | None = None,
        test_source: Source | None = None,
        predict_source: Source | None = None,
        val_fraction: float = 0.05,
        tokenizer: Tokenizer = _BYTES,
        chat_template: str | None = None,
        train_on: TrainOn = "all_assistant",
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
        attention_costs: Sequence[AttentionCost] = (),
        pad_to_capacity: bool = False,
        tokens_per_step: int | None = None,
        max_documents: int | None = None,
        empty_documents: EmptyDocuments = "skip",
        section_documents: int = 16384,
        num_workers: int = 0,
        cache_dir: str = str(DEFAULT_CACHE_DIR),
        max_val_documents: int | None = None,
    ) -> None:
        """Describes the data; nothing is read before `prepare_data` or `setup`.

        Args:
            source: Documents to train on: PythonDocs, Files, DatasetFolder, HubDataset, Mixture, or made-up ones.
            val_source: Documents to validate on. Unset: a part of `source`, which is then not trained on.
            val_sources: Several sets of documents to validate on, by name, instead of `val_source`. Each is logged as
                `val/NAME/loss` and so on, all their tokens together as `val/loss`, which `best.ckpt` looks at.
            test_source: Documents to test on. Unset: those of validation, if that is one set.
            predict_source: Documents to predict on. Unset: those of validation, if that is one set.
            val_fraction: The part of `source` that validation gets when it has no source, at least one document; 0 for
                no validation. The seed decides which documents.
            tokenizer: Text to token ids: ByteTokenizer, BPETokenizer or HFTokenizer.
            chat_template: A Jinja file that writes conversations out. Unset: the tokenizer's own, or else ChatML.
            train_on: The messages of a conversation that have a loss: `all_assistant`, or `last_assistant`, the last of
                the assistant's alone. Those whose `weight` is 0, or whose `train` is false, never have one.
            tokenizer_workers: Processes that tokenise; 0 for the main process alone. Unset: as many as there are CPUs,
                where there is much to do and the tokenizer has no threads of its own.
            capacity: Tokens a pack can hold.
            strategy: How documents are put into packs.
            buffer: Documents that the strategy `local_greedy` looks at.
            long_documents: The treatment of documents longer than `capacity`: `split` cuts them every `capacity`
                tokens, nothing is truncated; `error` refuses them.
            threshold_filtering: How the strategy of this name chooses the next document.
            embeddings: A .npy file with one row of numbers for each document of `source`, which the strategy
                `threshold_filtering` compares; unset: they are computed from the tokens' n-grams.
            shuffle: Train on documents and packs in a random order, a new one each epoch.
            seed: Seed of the shuffling and of the validation split.
            balance: The quantity that ranks get even shares of within an optimiser step: `tokens`, or `flops`, which
                counts attention's quadratic cost too; `none` takes packs as they come.
            attention_costs: What attention costs beside everything else in the model, an entry for each window; empty
                for a model without attention. Only balance `flops` looks at them.
            pad_to_capacity: Fill every batch to exactly `capacity` tokens, with one sequence that has no targets.
            tokens_per_step: About so many tokens an optimiser step: accumulate_grad_batches follows from it, from
                `capacity` and from the number of ranks. Unset: as trainer.accumulate_grad_batches says.
            max_documents: Use only the first so many documents of each source.
            empty_documents: The treatment of documents without a token, and of conversations in which the assistant
                says nothing: `skip` them, with a count, or raise an `error`.
            section_documents: Documents of a streamed source that are shuffled and packed together. Make it worth many
                optimiser steps: the last step of each section is a smaller one.
            num_workers: Processes that prepare batches; 0 prepares them in the training process.
            cache_dir: Folder for tokenised documents, so that a second run starts at once.
            max_val_documents: Validate on at most so many documents, whole ones, drawn by the seed. Unset: all.

        Raises:
            UsageError: A number out of range, an unknown name, or options that do not go together.
        """
        super().__init__()
        self.options = DataOptions(
            sources=SourceOptions(
                train=source,
                val=val_source,
                val_sources=val_sources,
                test=test_source,
                predict=predict_source,
                chat_template=chat_template,
            ),
            documents=DocumentOptions(
                section_documents=section_documents,
                max_documents=max_documents,
                streaming=source.streaming,
                val_fraction=val_fraction,
                tokenizer=tokenizer,
                train_on=train_on,
            ),
            packs=PackOptions(
                strategy=strategy,
                capacity=capacity,
                buffer=buffer,
                threshold_filtering=threshold_filtering,
                embeddings=embeddings,
            ),
            order=OrderOptions(shuffle=shuffle, seed=seed, balance=balance, attention_costs=tuple(attention_costs)),
            handling=HandlingOptions(
                empty_documents=empty_documents,
                long_documents=long_documents,
                pad_to_capacity=pad_to_capacity,
                cache_dir=Path(cache_dir).expanduser(),
                num_workers=num_workers,
                tokens_per_step=tokens_per_step,
                tokenizer_workers=tokenizer_workers,
                max_val_documents=max_val_documents,
            ),
        )
        self.allow_other_data = False
        """Whether a checkpoint may be evaluated on data that make its numbers wrong; see `resume.evaluated`."""
        self.splits = DocumentSplits(self.options)
        self._padding = {"pad_to": capacity if pad_to_capacity else None, "pad_id": tokenizer.pad_id}
        self._sections: Sections | None = None
        self._documents: dict[Split, Documents | None] = {}
        self._packs: dict[tuple[Split, str], Packs] = {}
        self._origin = Origin()
        self._progress: TrainingProgress | None = None
        self._saved: SavedData | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.options.documents.tokenizer

    @property
    def capacity(self) -> int:
        """Tokens a pack can hold."""
        return self.options.packs.capacity

    @property
    def strategy(self) -> Strategy:
        return self.options.packs.strategy

    @property
    def vocab_size(self) -> int:
        """Every token id is smaller; a model needs at least as many rows of embedding."""
        return self.tokenizer.vocab_size

    @property
    def val_names(self) -> tuple[str, ...]:
        """The names of `val_sources`, in the order of `val_dataloader`; none where there is one validation set."""
        return tuple(self.options.sources.val_sources or ())

    # Documents and packs

    def prepare_data(self) -> None:
        """Loads and tokenises the documents of the trainer's stage into the cache, in one process."""
        for split in self.splits.of_stage(current_stage(self.trainer)):
            if self.splits.has_source(split) and not self.splits.is_streamed(split):
                self.splits.corpus(split)

    def setup(self, stage: str | None = None) -> None:
        """Opens the documents of a stage (`fit`, `validate`, `test`, `predict`), or of all."""
        if stage == "fit" and self.trainer is not None and not batches_trained(self.trainer):
            self._origin.restart()
            self._progress, self._saved = None, None
        if stage == "fit" and self.trainer is not None:
            accumulate(self.trainer, self.options, data_ranks(self.trainer)[0])
        for split in self.splits.of_stage(stage):
            if split not in self._documents and not (split == "train" and self._streamed):
                self._documents[split] = self.splits.open(split)
        if stage == "fit" and not self._streamed and (said := self.splits.about_conversations("train")):
            rank_zero_info(f"{self.options.sources.train}: {said}")

    def teardown(self, stage: str) -> None:
        """Deletes the sections of a streamed source."""
        if self._sections is not None and stage == "fit":
            self._sections.close()
            self._sections = None

    @property
    def _streamed(self) -> bool:
        return self.splits.is_streamed("train")

    def documents(self, split: Split = "train") -> Documents:
        """The documents of a split. Raises RuntimeError before `setup`, UsageError if the split has none."""
        if split == "train" and self._streamed:
            raise UsageError(
                "the training documents are streamed, so they are not known ahead: iterate over train_dataloader(), or "
                "set the source's streaming to false"
            )
        if split not in self._documents:
            raise RuntimeError(f"the {split} documents are not there yet; call setup() first")
        documents = self._documents[split]
        if documents is None:
            raise UsageError(self.splits.why_none(split))
        return documents

    def packs(self, split: Split = "train", strategy: Strategy | None = None) -> Packs:
        """The packs of a split, by the data module's strategy or another one. They number `documents(split).rows`."""
        strategy = strategy or self.strategy
        if (split, strategy) not in self._packs:
            documents = self.documents(split)
            embeddings = self.embeddings_of(split) if strategy == "threshold_filtering" else None
            seed = self.options.order.shuffle_seed if split == "train" else None
            started = time.perf_counter()
            packs = pack_documents(self.options, documents, strategy=strategy, seed=seed, embeddings=embeddings)
            seconds = time.perf_counter() - started
            rank_zero_info(
                f"{split}: {documents.rows.size:,} documents, {documents.lengths.sum():,} tokens in {len(packs):,} "
                f"packs of {self.capacity} ({packs.efficiency:.2%} full, {packs.num_split} documents split), "
                f"{strategy}, {seconds:.2f} s"
            )
            self._packs[split, strategy] = packs
        return self._packs[split, strategy]

    def embeddings_of(self, split: Split) -> np.ndarray:
        """The embeddings (documents, any) by which `threshold_filtering` compares the documents of a split."""
        file, documents = self.options.packs.embeddings, self.documents(split)
        if file is not None and self.splits.source_of(split) == "train":
            return read_embeddings(file, documents)
        return embed(self.options, documents, self.options.handling.cache_dir)

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
        seed = self.options.order.shuffle_seed if split == "train" else None
        options = self.options.order.plan(seed=seed, world_size=world_size, accumulation=accumulation)
        return PackedDataset(documents, self.packs(split, strategy), options, rank=rank, **self._padding)

    # Loaders

    def train_dataloader(self) -> PackLoader:
        """Batches from where training stands to the end of its epoch.

        Raises UsageError if a checkpoint was loaded and its data, tokenizer or plan are not those of now, naming the
        differences; or for options of the Trainer that leave the number of targets of a step unknown.
        """
        world_size, rank = data_ranks(self.trainer)
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
        if self.trainer is not None:
            batches = len(dataset) if isinstance(dataset, PackedDataset) else None
            say = any(self._documents.get(split) is not None for split in self.options.sources.validation)
            count_validation_over_epochs(self.trainer, batches, say)
        self._progress = TrainingProgress(dataset, self._origin, self.trainer)
        if self._saved is not None:
            # A stream's documents are not known yet.
            digests = ({}, {}) if self._streamed else (self._saved.digests, dataset.digests(Position()))
            require_same(self._saved.fingerprint | digests[0], self.options.fingerprint | digests[1])
        return self._loader(TrainingSampler(self._progress))

    def _streamed_dataset(self, world_size: int, rank: int, accumulation: int) -> StreamedDataset:
        if self._sections is None:
            self._sections = open_sections(self.trainer, self.options)
        return StreamedDataset.of_run(
            self._sections, self.options, world_size, rank, accumulation, saved=self._saved, **self._padding
        )

    def val_dataloader(self) -> PackLoader | list[PackLoader]:
        """Batches of the validation documents in a fixed order, a loader for each of several sets; an empty list if
        there are none."""
        if self.val_names:
            return [self._eval_loader(split) for split in self.options.sources.validation]
        if "val" in self._documents and self._documents["val"] is None and current_stage(self.trainer) != "validate":
            return []
        return self._eval_loader("val")

    def test_dataloader(self) -> PackLoader:
        """Batches of the test documents in a fixed order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> PackLoader:
        """Batches of the documents to predict on in a fixed order."""
        return self._eval_loader("predict")

    def _eval_loader(self, split: Split) -> PackLoader:
        """Raises UsageError if a checkpoint is evaluated on data that make its numbers wrong; or if a limit of the
        Trainer leaves no whole document."""
        world_size, rank = data_ranks(self.trainer)
        dataset = self.dataset(split, world_size=world_size, rank=rank)
        for said in (
            *compare_evaluated(self, split, self._saved),
            *limit_to_whole_documents(self.trainer, dataset, split),
        ):
            rank_zero_info(f"{split}: {said}")
        return self._loader(PlanSampler(dataset))

    def _loader(self, sampler: PlanSampler) -> PackLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return pack_loader(sampler, num_workers=self.options.handling.num_workers, pin_memory=on_gpu)

    # Position and resume

    @property
    def position(self) -> Position:
        """Where training stands, by complete optimiser steps; prefetched batches do not count."""
        return self._origin.position if self._progress is None else self._progress.position

    def seek(self, epoch: int, packs: int = 0, *, section: int = 0) -> None:
        """The next iteration over the training loader starts behind so many packs of the epoch, or of a section of a
        streamed source; without a Trainer, a pack is a batch. A Trainer does this itself."""
        move(self._origin, Position(epoch, section, packs), self.trainer)

    def state_dict(self) -> dict[str, Any]:
        """The position and what it refers to; the same on every rank. Empty where nothing was trained on."""
        if self._progress is None:
            return {}
        digests = self._progress.dataset.digests(self._progress.position)
        return self._progress.state_dict() | {"fingerprint": self.options.fingerprint, "documents": digests}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the position of a checkpoint; whether the data are the same is checked when the loader is made, or when
        they are read from a stream. The number of ranks and `accumulate_grad_batches` may be others: they share what is
        left of the epoch."""
        position = Position(state_dict["epoch"], state_dict["section"], state_dict["packs"])
        self._origin.restart(position, state_dict["batches"], state_dict)
        self._saved = SavedData(position, translated(state_dict["fingerprint"]), state_dict["documents"])
