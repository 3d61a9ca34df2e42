"""Lines of text on how training goes."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lightning")

from lightning.pytorch.callbacks import ProgressBar

from packmamba.training import progress
from packmamba.training.progress import PackedProgressBar, TextProgress, in_hours, make_progress


class FakeTrainer(SimpleNamespace):
    """As much of a Trainer as the callback looks at."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(
            max_steps=5,
            max_epochs=None,
            num_training_batches=100,
            accumulate_grad_batches=1,
            global_step=0,
            training=True,
            validating=False,
            sanity_checking=False,
            state=SimpleNamespace(fn="fit"),
            logged_metrics={},
            callback_metrics={},
        )
        self.__dict__.update(fields)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock whose `now` a test moves on; every step is a row of the log."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(progress, "logs_this_step", lambda trainer: True)
    return clock


def train(bar: TextProgress, trainer: Any, clock: SimpleNamespace, steps: int, seconds: float) -> None:
    module: Any = None
    bar.on_train_start(trainer, module)
    for step in range(1, steps + 1):
        bar.on_train_batch_start(trainer, module, None, step)
        clock.now += seconds
        trainer.global_step = step
        bar.on_train_batch_end(trainer, module, None, None, step)
        trainer.logged_metrics = {"train/loss": 4 - step / 10, "lr": 3e-4, "tokens_per_second": 42_100.4}
    bar.on_train_epoch_end(trainer, module)


def test_a_line_holds_step_loss_rate_speed_and_the_time_left(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    train(TextProgress(), FakeTrainer(), clock, 5, 3600)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 1/5  loss 3.900  lr 3.0e-04  42,100 tokens/s"
    assert lines[1] == "step 2/5  loss 3.800  lr 3.0e-04  42,100 tokens/s  eta 3:00:00"
    assert lines[-1] == "step 5/5  loss 3.500  lr 3.0e-04  42,100 tokens/s"
    assert len(lines) == 5
    assert all(len(line) <= 80 for line in lines)


def test_lines_come_seconds_apart_but_for_the_first_and_the_last(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    train(TextProgress(every_seconds=5), FakeTrainer(max_steps=23), clock, 23, 1)
    steps = [int(re.findall(r"step (\d+)/23", line)[0]) for line in capsys.readouterr().err.splitlines()]
    assert steps == [1, 6, 11, 16, 21, 23]


def test_steps_that_are_not_logged_are_not_shown(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "logs_this_step", lambda trainer: trainer.global_step % 2 == 0)
    train(TextProgress(), FakeTrainer(), clock, 5, 60)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["2/5", "4/5"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"max_steps": -1, "max_epochs": 3, "num_training_batches": 7, "accumulate_grad_batches": 2}, "step 1/12"),
        ({"max_steps": 10, "max_epochs": 3, "num_training_batches": 7}, "step 1/10"),
        ({"max_steps": -1, "max_epochs": 2, "num_training_batches": float("inf")}, "step 1"),
        ({"max_steps": -1, "max_epochs": -1}, "step 1"),
    ],
)
def test_the_last_step_is_told_where_it_is_known(
    fields: dict[str, Any], place: str, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    train(TextProgress(), FakeTrainer(**fields), clock, 2, 1)
    assert capsys.readouterr().err.splitlines()[0].startswith(f"{place}  loss")


def test_every_validation_set_has_a_line_of_its_own(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {
        "val/loss": 2.0,
        "val/perplexity": 7.389,
        "val/document_perplexity": 8.0,
        "val/wiki/loss": 1.5,
        "val/wiki/perplexity": 4.4817,
        "train/loss": 3.0,
    }
    TextProgress().on_validation_end(FakeTrainer(global_step=4, callback_metrics=metrics), None)  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        "step 4  validation  loss 2.000  perplexity 7.39  by document 8.00",
        "step 4  validation wiki  loss 1.500  perplexity 4.48",
    ]


def test_the_check_of_validation_before_training_is_not_told(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer: Any = FakeTrainer(sanity_checking=True, training=False, callback_metrics={"val/loss": 2.0})
    bar = TextProgress()
    bar.on_validation_start(trainer, None)  # type: ignore[arg-type]
    bar.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_ranks_but_the_first_are_silent(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    bar = TextProgress()
    bar.disable()
    train(bar, FakeTrainer(), clock, 5, 3600)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_a_file_gets_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, dumb, kind in (
        (True, False, PackedProgressBar),
        (True, True, TextProgress),
        (False, False, TextProgress),
    ):
        console = SimpleNamespace(is_terminal=terminal, is_dumb_terminal=dumb)
        monkeypatch.setattr(progress, "Console", lambda stderr, console=console: console)
        assert type(make_progress("auto")) is kind
    assert type(make_progress("bar")) is PackedProgressBar
    assert isinstance(make_progress("text"), ProgressBar)
    assert make_progress("none") is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (5025, "1:23:45"), (360_000, "100:00:00")]
)
def test_times_are_in_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert in_hours(seconds) == text
