"""Validation when training ends: always, once, and in time for best.ckpt."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from packmamba.data import PackedDataModule
from packmamba.data.sources import Recall
from packmamba.training.callbacks import BestCheckpoint, LastCheckpoint, default_callbacks
from packmamba.training.lit import LitHybridLM
from packmamba.training.validation import FinalValidation
from tests.data.resume.runs import QUIET
from tests.training.test_lit import CONFIG, Data, batch_of, documents, fit, make_trainer

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:You have overridden"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from"),
]

BATCH = [batch_of(documents([9, 5]), step_targets=12)]


class Validations(Callback):
    """The optimiser steps whose weights were validated, the sanity check left out."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)


def validated(folder: Path, batches: int = 9, val: bool = True, **options: Any) -> list[int]:
    """The steps after which a run over so many batches an epoch validates."""
    validations = Validations()
    callbacks = [FinalValidation(), validations, *options.pop("callbacks", [])]
    fit(folder, Data(BATCH * batches, BATCH if val else []), callbacks=callbacks, **options)
    return validations.steps


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 4}, [4]),
        ({"max_steps": 9}, [9]),
        ({"max_steps": 10}, [9, 10]),
        ({"max_steps": 4, "val_check_interval": 2}, [2, 4]),
        ({"max_steps": 5, "val_check_interval": 2}, [2, 4, 5]),
        ({"max_steps": -1, "max_epochs": 2}, [9, 18]),
        ({"max_steps": -1, "max_epochs": 2, "val_check_interval": 4}, [4, 8, 13, 17, 18]),
        ({"max_steps": -1, "max_epochs": 3, "check_val_every_n_epoch": 2}, [18, 27]),
        ({"max_steps": 4, "val_check_interval": 100, "check_val_every_n_epoch": None}, [4]),
        ({"max_steps": 2, "accumulate_grad_batches": 2, "val_check_interval": 3}, [1, 2]),
        ({"max_steps": 4, "num_sanity_val_steps": 1}, [4]),
        ({"max_steps": 4, "limit_val_batches": 0}, []),
        ({"max_steps": 4, "val": False}, []),
        ({"fast_dev_run": 2}, [2]),
    ],
    ids=str,
)
def test_the_weights_that_training_leaves_are_validated_once(tmp_path, options, steps):
    assert validated(tmp_path, **options) == steps


def test_a_run_that_is_stopped_early_is_validated_once(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    assert validated(tmp_path, max_steps=9, callbacks=[Stop()]) == [3]


@pytest.mark.parametrize("interval", [1.0, 5, 2])
def test_the_last_validation_is_logged_with_the_last_step_and_leaves_a_best_checkpoint(tmp_path, interval):
    logger = CSVLogger(tmp_path, name="run")
    callbacks = [FinalValidation(), BestCheckpoint(), LastCheckpoint()]
    options: dict[str, Any] = {"logger": logger, "val_check_interval": interval, "enable_checkpointing": True}
    fit(tmp_path, Data(BATCH * 9, BATCH), max_steps=3, callbacks=callbacks, **options)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["val/loss"]] == ([1, 2] if interval == 2 else [2])
    assert max(int(row["step"]) for row in rows if row["train/loss"]) == 2
    folder = Path(logger.log_dir) / "checkpoints"
    for name in ("best.ckpt", "last.ckpt"):
        state = torch.load(folder / name, weights_only=True)
        assert state["global_step"] == 3
        assert state["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] in (2, 3)
    best = torch.load(folder / "best.ckpt", weights_only=True)["callbacks"]
    (saved,) = [state for name, state in best.items() if name.startswith("BestCheckpoint")]
    assert float(saved["best_model_score"]) == pytest.approx(min(float(r["val/loss"]) for r in rows if r["val/loss"]))


def test_training_goes_on_in_the_log_where_the_last_validation_left_it(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0)
    callbacks = lambda: [FinalValidation(), LastCheckpoint()]  # noqa: E731
    data, options = Data(BATCH * 9, BATCH), {"enable_checkpointing": True, "val_check_interval": 5}
    fit(tmp_path, data, logger=logger, callbacks=callbacks(), max_steps=3, **options)
    lit, again = LitHybridLM(CONFIG, warmup_steps=2), CSVLogger(tmp_path, name="again", version=0)
    path = str(Path(logger.log_dir) / "checkpoints" / "last.ckpt")
    make_trainer(tmp_path, logger=again, callbacks=callbacks(), max_steps=6, **options).fit(lit, data, ckpt_path=path)
    with open(Path(again.log_dir) / "metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]] == [3, 4, 5]


def test_the_command_lines_callbacks_have_it():
    assert any(isinstance(callback, FinalValidation) for callback in default_callbacks())


class TestIntervalsLongerThanAnEpoch:
    def steps(self, tmp_path: Path, **options: Any) -> list[int]:
        validations, data_options = Validations(), options.pop("data", {})
        data = PackedDataModule(
            **{"source": Recall(num_documents=60), "capacity": 258, "cache_dir": str(tmp_path)} | data_options
        )
        torch.manual_seed(0)
        lit = LitHybridLM(CONFIG.__class__(layer_pattern="-", d_model=8, vocab_size=258), warmup_steps=2)
        make_trainer(tmp_path, callbacks=[FinalValidation(), validations], **options).fit(lit, data)
        return validations.steps

    def test_are_counted_over_epochs_and_one_line_says_so(self, tmp_path, caplog):
        with caplog.at_level("INFO"):
            assert self.steps(tmp_path, max_steps=45, val_check_interval=20) == [20, 40, 45]
        said = [record.message for record in caplog.records if "val_check_interval" in record.message]
        assert said == [
            "trainer.val_check_interval 20 is more than the 8 batches of an epoch: batches are counted over epochs, "
            "validation comes after every 20"
        ]

    def test_come_at_the_end_of_the_epochs_that_are_asked_for(self, tmp_path, caplog):
        with caplog.at_level("INFO"):
            steps = self.steps(tmp_path, max_steps=45, val_check_interval=20, check_val_every_n_epoch=2)
        assert steps == [16, 32, 45]
        assert (
            "validation comes at the end of every epoch whose number check_val_every_n_epoch 2 divides" in caplog.text
        )

    def test_are_nothing_to_speak_of_where_nothing_is_validated(self, tmp_path, caplog):
        with caplog.at_level("INFO"):
            assert self.steps(tmp_path, max_steps=11, val_check_interval=20, limit_val_batches=0) == []
            assert self.steps(tmp_path, max_steps=11, val_check_interval=20, data={"val_fraction": 0}) == []
        assert "val_check_interval" not in caplog.text
