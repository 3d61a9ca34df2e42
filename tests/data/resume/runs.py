"""Runs of a Trainer that remember which documents they have trained on."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from packmamba.training.validation import FinalValidation

QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:Total length of `list`"),
    pytest.mark.filterwarnings("ignore:.*fork"),
]
"""Marks of modules that train: warnings that do not concern them."""

RUNS = [
    pytest.param({}, id="plain"),
    pytest.param({"accumulate_grad_batches": 3}, id="accumulated"),
    pytest.param({"val_check_interval": 5}, id="validating"),
    pytest.param({"val_check_interval": 5, "accumulate_grad_batches": 3}, id="validating-accumulated"),
]
"""Options of a Trainer, loaded or streamed."""

Batch = tuple[list[int], int]


class Recorder(pl.LightningModule):
    """Trains one number, and remembers the documents and the step's targets of every batch."""

    def __init__(self, report: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Batch] = []
        self.targets: list[int] = []
        self.steps: list[int] = []
        self.report = report

    def training_step(self, batch, batch_idx):
        self.seen.append((batch.doc_ids.tolist(), batch.step_targets))
        self.targets.append(batch.num_targets)
        return self.weight.sum()

    def on_before_optimizer_step(self, optimizer):
        self.steps.append(len(self.seen))

    @property
    def stepped(self) -> int:
        """Batches seen when the weights last changed."""
        return self.steps[-1] if self.steps else 0

    def validation_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        self.seen.append((batch.doc_ids.tolist(), batch.step_targets))
        return batch.num_tokens

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_fit_end(self):
        if self.report is not None:
            (self.report / f"rank{self.global_rank}.json").write_text(json.dumps(self.seen))


class SaveEverywhere(pl.Callback):
    """A checkpoint wherever checkpoints are saved, with the number of batches that its weights have learned from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: dict[str, tuple[str, int]] = {}

    def save(self, trainer, moment: str) -> None:
        path = str(self.folder / f"{moment}-{len(self.saved)}.ckpt")
        trainer.save_checkpoint(path)
        self.saved[path] = moment, trainer.lightning_module.stepped

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch")

    def on_train_end(self, trainer, *_):
        self.save(trainer, "end")


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**({"accelerator": "cpu", "enable_checkpointing": False, "max_epochs": 3} | quiet | options))


def train(
    data, tmp_path: Path, *, model=None, checkpoint: str | None = None, keep=False, num_workers: int = 0, **options: Any
):
    """The batches of a run, and the checkpoints saved on the way, unless it was resumed; `keep` saves them then too.

    Like the runs of the command line, it validates when it ends."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    model, save = model or Recorder(), SaveEverywhere(folder)
    callbacks = [FinalValidation(), *([save] if keep or checkpoint is None else [])]
    trainer(callbacks=callbacks, **options).fit(model, datamodule=data(num_workers=num_workers), ckpt_path=checkpoint)
    return model.seen, save.saved


def train_as_ranks(data, tmp_path: Path, monkeypatch, ranks: int, accumulation: int, **options: Any):
    """Trains as each of some ranks in turn: their batches, and the checkpoints of rank 0.

    The ranks need not meet: they plan without a word to each other.
    """
    models, saved = [Recorder() for _ in range(ranks)], {}
    for rank in reversed(range(ranks)):
        monkeypatch.setattr("packmamba.data.datamodule.data_ranks", lambda trainer, rank=rank: (ranks, rank))
        _, saved = train(data, tmp_path, model=models[rank], accumulate_grad_batches=accumulation, **options)
    for begin, end in itertools.pairwise([0, *models[0].steps]):
        announced = {targets for model in models for _, targets in model.seen[begin:end]}
        assert announced == {sum(sum(model.targets[begin:end]) for model in models)}
    assert len({len(model.seen) for model in models}) == 1, "ranks take different numbers of steps"
    assert models[0].stepped == len(models[0].seen), "the run ends in the middle of an optimiser step"
    return [model.seen for model in models], saved


def documents_of(seen: list[list[Batch]], begin: int = 0, end: int | None = None) -> list[int]:
    return sorted(doc for batches in seen for docs, _ in batches[begin:end] for doc in docs if doc >= 0)
