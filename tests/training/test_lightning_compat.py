"""The private parts of Lightning that packmamba uses are there, and mean what they are taken for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from lightning.pytorch.callbacks import Callback

from packmamba.training import lightning_compat as compat
from tests.training.test_lit import Data, batch_of, documents, fit, make_trainer


def test_counters_and_logged_steps_are_read_while_a_trainer_runs(tmp_path: Path) -> None:
    seen: list[tuple[int, int, bool, bool, bool, str | None]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            counts = compat.batches_trained(trainer), compat.batches_of_epoch(trainer)
            last, logs = compat.at_last_batch(trainer), compat.logs_this_step(trainer)
            seen.append((*counts, last, logs, compat.is_fitting(trainer), compat.current_stage(trainer)))

    data = Data([batch_of(documents([9, 5]))] * 3)
    lit, _ = fit(tmp_path, data, max_steps=5, log_every_n_steps=2, callbacks=[Look()])
    totals, of_epoch, last, logged, fitting, stages = zip(*seen, strict=True)
    assert totals == (1, 2, 3, 4, 5)
    assert of_epoch == (1, 2, 3, 1, 2)
    assert last == (False, False, True, False, False)
    assert logged == (False, True, False, True, False)
    assert set(fitting) == {True}
    assert set(stages) == {"fit"}
    assert not compat.is_fitting(lit.trainer)
    assert compat.datamodule_of(lit.trainer) is data


def test_without_a_trainer_there_is_nothing_to_read() -> None:
    assert compat.batches_trained(None) == 0
    assert compat.current_stage(None) is None
    assert not compat.is_fitting(None)
    assert compat.data_ranks(None) == (1, 0)


def test_a_trainer_that_never_logs_trains(tmp_path: Path) -> None:
    _, recorder = fit(tmp_path, Data([batch_of(documents([9, 5]))]), max_steps=2, log_every_n_steps=0)
    assert recorder.rows == [{}, {}]


def test_the_last_step_is_known_or_none(tmp_path: Path) -> None:
    for options, last in (({"max_steps": 7}, 7), ({"max_steps": -1, "max_epochs": 2}, None)):
        trainer: Any = make_trainer(tmp_path, **options)
        trainer.datamodule = None
        assert compat.last_step(trainer) == last


def test_only_scaled_gradients_need_an_unfused_optimiser(tmp_path: Path) -> None:
    assert not compat.scales_gradients(make_trainer(tmp_path, precision="bf16-mixed"))
    trainer: Any = make_trainer(tmp_path)
    trainer.precision_plugin.scaler = object()
    assert compat.scales_gradients(trainer)
