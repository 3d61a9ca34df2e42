"""`last.ckpt` and `best.ckpt`: whatever stops training, it goes on as if nothing had; NaN is never the best."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from packmamba.config import AttentionConfig, ModelConfig
from packmamba.data import PackedDataModule
from packmamba.data.sources import Files
from packmamba.errors import UsageError
from packmamba.training.checkpoint_files import AtomicCheckpointIO, newest_whole
from packmamba.training.checkpoints import BestCheckpoint, LastCheckpoint
from packmamba.training.lit import LitHybridLM
from tests.data.resume.runs import QUIET
from tests.support import assert_identical

pytestmark = QUIET
STEPS = 14


class Kept(LitHybridLM):
    """Keeps the losses of its validations, and does something at a moment: a hook's name, and which call of it."""

    def __init__(self, moment: tuple[str, int] | None = None, act: Any = None) -> None:
        config = ModelConfig(layer_pattern="1-*", d_model=16, vocab_size=258, attention=AttentionConfig(num_heads=2))
        super().__init__(config, learning_rate=1e-2, warmup_steps=2, decay_steps=STEPS)
        self.validations: dict[int, float] = {}
        self.moment, self.act, self.calls = moment, act, 0

    def reach(self, name: str) -> None:
        if self.moment is not None and self.moment[0] == name:
            self.calls += 1
            if self.calls == self.moment[1]:
                self.act()

    def training_step(self, batch, batch_idx):
        self.reach("forward")
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.reach("end of a batch")

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            self.reach("loading")
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def optimizer_step(self, *arguments, **options):
        super().optimizer_step(*arguments, **options)
        self.reach("optimiser step")

    def validation_step(self, batch, batch_idx):
        self.reach("validation")
        super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.validations[self.trainer.global_step] = float(self.trainer.callback_metrics["val/loss"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("documents")
    file = folder / "documents.jsonl"
    texts = [f"document {i} " + "abc " * (i % 7) for i in range(60)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file), str(folder / "cache")


@pytest.fixture
def fit(files: tuple[str, str], tmp_path: Path):
    """A function that trains in a folder from a checkpoint of its own, if there is one, or from the beginning."""

    def run(
        name: str, model: Kept, *more: pl.Callback, accumulate: int = 2, last: dict[str, Any] | None = None
    ) -> pl.Trainer:
        file, cache = files
        data = PackedDataModule(source=Files(paths=[file]), val_fraction=0.3, capacity=120, cache_dir=cache)
        callbacks = [BestCheckpoint(), LastCheckpoint(**(last or {}))]
        for callback in callbacks:
            callback.dirpath = str(tmp_path / name)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            val_check_interval=5,
            check_val_every_n_epoch=None,
            callbacks=[*more, *callbacks],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        pl.seed_everything(0)
        start = newest_whole(tmp_path / name)
        trainer.fit(model, datamodule=data, ckpt_path=start and str(start))
        return trainer

    return run


@pytest.fixture
def steady(fit):
    """A function that trains without a stop, once with each number of further callbacks: the model."""

    def run(*more: pl.Callback) -> Kept:
        if len(more) not in _steady:
            fit("steady", model := Kept(), *more)
            _steady[len(more)] = model
        return _steady[len(more)]

    return run


_steady: dict[int, Kept] = {}


def fail() -> None:
    raise RuntimeError("a bug")


def send(signum: int) -> Any:
    return lambda: os.kill(os.getpid(), signum)


STOPS = {
    "exception": (fail, RuntimeError, None),
    "SIGTERM": (send(signal.SIGTERM), SystemExit, 143),
    "SIGUSR1": (send(signal.SIGUSR1), SystemExit, 138),
    "Ctrl-C": (send(signal.SIGINT), SystemExit, 1),  # Lightning's code, which the command line makes 130
}
MOMENTS = [("forward", 7), ("forward", 8), ("end of a batch", 9), ("loading", 10), ("loading", 13), ("validation", 5)]
CASES = [
    pytest.param(stop, moment, id=f"{stop} in {moment[0]} {moment[1]}")
    for stop in STOPS
    for moment in (MOMENTS if stop in ("exception", "SIGTERM") else MOMENTS[:1])
]


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "moment"), CASES)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(fit, steady, tmp_path, capsys, stop: str, moment) -> None:
    expected = steady()
    act, exception, code = STOPS[stop]
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with pytest.raises(exception) as raised:
        fit("stopped", stopped := Kept(moment, act))
    assert getattr(raised.value, "code", None) == code
    path = tmp_path / "stopped" / "last.ckpt"
    step = stopped.global_step
    assert f"after optimiser step {step}, " in capsys.readouterr().err
    assert torch.load(path, weights_only=True)["global_step"] == step > 2
    resumed = Kept()
    fit("stopped", resumed)
    for name, weight in expected.state_dict().items():
        assert_identical(name, weight, resumed.state_dict()[name])
    assert stopped.validations | resumed.validations == expected.validations
    assert len(expected.validations) > 3
    assert {signum: signal.getsignal(signum) for signum in before} == before


@pytest.mark.slow
def test_averaged_weights_survive_a_stop_during_validation(fit, steady, tmp_path) -> None:
    """Lightning puts the averages into the model while it validates."""
    expected = steady(EMAWeightAveraging(decay=0.5))
    with pytest.raises(RuntimeError):
        fit("stopped", Kept(("validation", 5), fail), EMAWeightAveraging(decay=0.5))
    fit("stopped", resumed := Kept(), EMAWeightAveraging(decay=0.5))
    for name, weight in expected.state_dict().items():
        assert_identical(name, weight, resumed.state_dict()[name])


@pytest.mark.parametrize(
    ("moment", "error", "said"),
    [
        (("optimiser step", 6), RuntimeError, "in the middle of an optimiser step, whose weights are not saved"),
        (("forward", 9), UsageError, None),
        (("forward", 1), RuntimeError, None),
    ],
    ids=["half-updated weights", "an error that makes the state worthless", "nothing trained yet"],
)
def test_a_state_that_is_no_good_is_not_saved(fit, tmp_path, capsys, moment, error, said) -> None:
    def act() -> None:
        raise error("stop")

    with pytest.raises(error):
        fit("stopped", Kept(moment, act), last={"every_n_train_steps": 2})
    saved = sorted(path.name for path in (tmp_path / "stopped").glob("*.ckpt"))
    messages = capsys.readouterr().err
    if moment[1] == 1:
        assert saved == []
    else:
        assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"] == 4
    if said is not None:
        assert said in messages


def test_an_exception_saves_nothing_where_that_was_not_wanted(fit, tmp_path) -> None:
    with pytest.raises(RuntimeError):
        fit("stopped", Kept(("forward", 7), fail), last={"save_on_exception": False, "every_n_train_steps": 2})
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_checkpoints_are_written_every_so_many_minutes(fit, tmp_path, monkeypatch) -> None:
    saved = []
    monkeypatch.setattr(
        AtomicCheckpointIO, "save_checkpoint", lambda self, checkpoint, *_, **__: saved.append(checkpoint)
    )
    minutes = iter(range(10_000))
    monkeypatch.setattr("packmamba.training.checkpoints.time.monotonic", lambda: 60.0 * next(minutes))
    fit("minutes", Kept(), last={"every_n_train_steps": 1000, "every_minutes": 4})
    steps = [checkpoint["global_step"] for checkpoint in saved if checkpoint["global_step"] < STEPS]
    assert len(set(steps)) >= 3
    saved.clear()
    fit("none", Kept(), last={"every_n_train_steps": 1000, "every_minutes": None})
    assert {checkpoint["global_step"] for checkpoint in saved[-1:]} == {STEPS}


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"every_minutes": 0}, {"every_minutes": float("nan")}], ids=str)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"last_checkpoint.{next(iter(wrong))} must be "):
        LastCheckpoint(**wrong)


class Diverging(Kept):
    """Its validation losses are `values`, one after the other."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", torch.tensor(next(self.values)))


def test_best_checkpoint_is_never_made_of_a_number_that_is_not_finite(fit, tmp_path) -> None:
    nan, infinite = float("nan"), float("inf")
    with pytest.warns(UserWarning, match=r"val/loss is nan at optimiser step 2: best.ckpt stays what it was") as said:
        fit("nan", Diverging([nan, 3.0, nan, 2.0, -infinite] + [nan] * 20))
    assert torch.load(tmp_path / "nan" / "best.ckpt", weights_only=True)["global_step"] == 11
    assert len([warning for warning in said if "stays what it was" in str(warning.message)]) == 1
    with pytest.warns(UserWarning, match="stays what it was"):
        fit("only nan", Diverging([nan, infinite] + [nan] * 20))
    assert not (tmp_path / "only nan" / "best.ckpt").exists()


def test_a_resumed_run_in_another_folder_goes_on_comparing_with_the_best_before_it(fit, tmp_path) -> None:
    (tmp_path / "first").mkdir()
    best = BestCheckpoint()
    best.dirpath = str(tmp_path / "second")
    file = tmp_path / "first" / "best.ckpt"
    state = BestCheckpoint().state_dict() | {
        "dirpath": str(tmp_path / "first"),
        "best_model_path": str(file),
        "best_model_score": torch.tensor(2.0),
    }
    best.load_state_dict(state)
    assert best.best_model_path == ""  # the file is gone
    file.write_bytes(b"")
    best.load_state_dict(state)
    assert (best.best_model_path, best.kth_best_model_path, float(best.kth_value)) == (str(file), str(file), 2.0)
    assert list(best.best_k_models) == [str(file)]


def test_a_users_own_way_to_write_checkpoints_stays(tmp_path) -> None:
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    from packmamba.training.checkpoints import use_atomic_files

    given = AsyncCheckpointIO()
    trainer = pl.Trainer(accelerator="cpu", plugins=[given], logger=False, enable_progress_bar=False)
    use_atomic_files(trainer)
    assert trainer.strategy.checkpoint_io is given
    plain = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    use_atomic_files(plain)
    assert isinstance(plain.strategy.checkpoint_io, AtomicCheckpointIO)
