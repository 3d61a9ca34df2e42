"""A resumed run's optimiser and schedule: refused where they are not the checkpoint's, or truly changed, and said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from packmamba.errors import UsageError
from packmamba.training.lit import LitHybridLM
from packmamba.training.optimizers import SGD, AdamW, Muon
from packmamba.training.schedules import WSD, Constant, Linear, learning_rate_factor
from tests.training.test_lit import CONFIG, Data, Recorder, batch_of, documents, fit, make_trainer

DATA = Data([batch_of(documents([9, 5, 20], seed=i)) for i in range(8)])
REST = Data(DATA.train[3:] + DATA.train[:3])
OPTIONS: dict[str, Any] = {"learning_rate": 1e-2, "warmup_steps": 2, "decay_steps": 10}


class FirstStep(Callback):
    """The optimiser as the first step after resuming uses it."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        self.state: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self.groups:
            self.groups = [
                {name: group[name] for name in group if name != "params"} for group in optimizer.param_groups
            ]
            self.state = [s["exp_avg"].clone() for s in optimizer.state.values() if "exp_avg" in s]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After 3 steps of AdamW and the cosine."""
    folder = tmp_path_factory.mktemp("checkpoint")
    lit, _ = fit(folder, DATA, lit=LitHybridLM(CONFIG, **OPTIONS), max_steps=3)
    lit.trainer.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


def resume(folder: Path, path: Path, *, max_steps: int = 6, **options: Any) -> tuple[LitHybridLM, FirstStep, Recorder]:
    lit, first, recorder = LitHybridLM(CONFIG, **(OPTIONS | options)), FirstStep(), Recorder()
    recorder.rows = [{}] * 3
    make_trainer(folder, max_steps=max_steps, callbacks=[first, recorder]).fit(lit, REST, ckpt_path=path)
    return lit, first, recorder


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"learning_rate": 3e-3}, "learning_rate: 0.01 in the checkpoint, 0.003 in this run"),
    "weight decay": ({"weight_decay": 0.3}, "weight_decay: 0.1 in the checkpoint, 0.3 in this run"),
    "betas": ({"betas": (0.8, 0.9)}, "betas: (0.9, 0.95) in the checkpoint, (0.8, 0.9) in this run"),
    "eps": ({"eps": 1e-6}, "eps: 1e-08 in the checkpoint, 1e-06 in this run"),
    "warm-up": ({"warmup_steps": 5}, "warmup_steps: 2 in the checkpoint, 5 in this run"),
    "minimum": (
        {"min_learning_rate_ratio": 0.2},
        "min_learning_rate_ratio: 0.1 in the checkpoint, 0.2 in this run",
    ),
    "end": ({"decay_steps": 20}, "decay_steps: 10 in the checkpoint, 20 in this run"),
    "end unset": ({"decay_steps": None}, "decay_steps: 10 in the checkpoint, None in this run"),
    "schedule": ({"schedule": Linear()}, "schedule: 'Cosine' in the checkpoint, 'Linear' in this run"),
    "optimizer": ({"optimizer": Muon()}, "optimizer: 'AdamW' in the checkpoint, 'Muon' in this run"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_option_is_refused_in_one_line_with_both_values(
    tmp_path: Path, checkpoint: Path, change: str
) -> None:
    options, message = CHANGES[change]
    with pytest.raises(UsageError, match="the optimiser of the checkpoint had other options") as error:
        resume(tmp_path, checkpoint, **options)
    assert message in str(error.value)
    assert "--model.override_optimizer true" in str(error.value)
    assert str(error.value).count(" in the checkpoint") == 1
    assert "\n" not in str(error.value)


def test_all_changed_options_are_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError) as error:
        resume(tmp_path, checkpoint, learning_rate=3e-3, eps=1e-6, schedule=WSD())
    for name in ("learning_rate", "eps", "schedule"):
        assert f"{name}: " in str(error.value)


def test_the_same_options_resume_as_ever_and_say_nothing(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, _ = fit(tmp_path, DATA, lit=LitHybridLM(CONFIG, **OPTIONS), max_steps=6)
    with caplog.at_level(logging.INFO):
        resumed, *_ = resume(tmp_path, checkpoint)
        overridden, *_ = resume(tmp_path, checkpoint, override_optimizer=True)
    assert "learning rate" not in caplog.text
    assert "override_optimizer" not in caplog.text
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
        assert torch.equal(weight, overridden.state_dict()[name]), name


def test_override_changes_what_the_steps_use_and_says_so_in_one_line(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = {"learning_rate": 3e-3, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-6}
    with caplog.at_level(logging.INFO):
        lit, first, recorder = resume(tmp_path, checkpoint, override_optimizer=True, **changed)
    (said,) = [line for line in caplog.messages if "model.override_optimizer changes" in line]
    assert "from step 3 on: " in said
    for change in ("learning rate", "weight decay", "betas", "eps"):
        assert CHANGES[change][1] in said
    factors = [learning_rate_factor(step, warmup_steps=2, decay_steps=10, min_ratio=0.1) for step in range(6)]
    for group, weight_decay in zip(first.groups, (0.3, 0.0), strict=True):
        assert group["lr"] == pytest.approx(3e-3 * factors[3])
        assert group["initial_lr"] == 3e-3
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-6, weight_decay)
    assert [row["lr"] for row in recorder.rows[3:]] == pytest.approx([3e-3 * factor for factor in factors[3:]])
    assert lit.trainer.lr_scheduler_configs[0].scheduler.base_lrs == [3e-3, 3e-3]
    saved = torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["state"]
    assert len(first.state) == len(saved)
    assert all(torch.equal(now, saved[i]["exp_avg"]) for i, now in enumerate(first.state)), "the moments are kept"


def test_what_was_overridden_is_what_the_next_checkpoint_has(tmp_path: Path, checkpoint: Path) -> None:
    lit, *_ = resume(tmp_path, checkpoint, override_optimizer=True, learning_rate=3e-3)
    lit.trainer.save_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(UsageError, match=r"learning_rate: 0.003 in the checkpoint, 0.01 in this run"):
        resume(tmp_path, tmp_path / "b.ckpt", max_steps=8)
    lit, first, _ = resume(tmp_path, tmp_path / "b.ckpt", max_steps=8, learning_rate=3e-3)
    factor = learning_rate_factor(6, warmup_steps=2, decay_steps=10, min_ratio=0.1)
    assert first.groups[0]["lr"] == pytest.approx(3e-3 * factor)


@pytest.mark.parametrize("optimizer", [Muon(), SGD()], ids=["Muon", "SGD"])
def test_override_takes_another_optimiser_whose_state_begins_empty(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture, optimizer: Any
) -> None:
    with caplog.at_level(logging.INFO):
        lit, first, recorder = resume(tmp_path, checkpoint, override_optimizer=True, optimizer=optimizer)
    assert "the new optimiser's state begins empty" in caplog.text
    assert first.state == []
    factor = learning_rate_factor(3, warmup_steps=2, decay_steps=10, min_ratio=0.1)
    assert recorder.rows[3]["lr"] == pytest.approx(1e-2 * factor)
    assert lit.trainer.optimizers[0].state


def test_override_takes_another_schedule(tmp_path: Path, checkpoint: Path) -> None:
    options = {"schedule": Constant(), "decay_steps": None}
    _, _, recorder = resume(tmp_path, checkpoint, override_optimizer=True, **options)
    assert [row["lr"] for row in recorder.rows[3:]] == pytest.approx([1e-2] * 3)


def test_an_optimisers_own_option_is_named_and_changed(tmp_path: Path) -> None:
    own = {"optimizer": SGD(momentum=0.5), "learning_rate": 1e-2}
    lit, _ = fit(tmp_path, DATA, lit=LitHybridLM(CONFIG, **(OPTIONS | own)), max_steps=3)
    lit.trainer.save_checkpoint(tmp_path / "sgd.ckpt")
    with pytest.raises(UsageError, match=r"optimizer.momentum: 0.5 in the checkpoint, 0.8 in this run"):
        resume(tmp_path, tmp_path / "sgd.ckpt", optimizer=SGD(momentum=0.8))
    _, first, _ = resume(tmp_path, tmp_path / "sgd.ckpt", optimizer=SGD(momentum=0.8), override_optimizer=True)
    assert first.groups[0]["momentum"] == 0.8


def test_which_parameters_are_decayed_cannot_change(tmp_path: Path, checkpoint: Path) -> None:
    for override in (False, True):
        with pytest.raises(UsageError, match=r"decay_embeddings: False in the checkpoint, True in this run"):
            resume(tmp_path, checkpoint, decay_embeddings=True, override_optimizer=override)


class TestAMovedEnd:
    """decay_steps is not set, so the schedule ends with training, and another length of training moves its end."""

    @pytest.fixture(scope="class")
    def moving(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("moving")
        lit = LitHybridLM(CONFIG, learning_rate=1e-2, warmup_steps=1)
        lit, _ = fit(folder, DATA, lit=lit, max_steps=3)
        lit.trainer.save_checkpoint(folder / "a.ckpt")
        return folder / "a.ckpt"

    def go_on(
        self, folder: Path, path: Path, caplog: pytest.LogCaptureFixture, **options: Any
    ) -> tuple[list[float], str]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            _, _, recorder = resume(folder, path, **({"warmup_steps": 1, "decay_steps": None} | options))
        said = [line for line in caplog.messages if "learning rate" in line]
        return [row["lr"] for row in recorder.rows[3:]], "".join(said)

    def test_a_longer_run_is_told_that_the_rate_rises_again_and_how_to_keep_it(
        self, tmp_path: Path, moving: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rates, said = self.go_on(tmp_path, moving, caplog)
        expected = [learning_rate_factor(s, warmup_steps=1, decay_steps=6, min_ratio=0.1) * 1e-2 for s in (3, 4, 5)]
        assert rates == pytest.approx(expected)
        assert "rises again from 0.001 to 0.00689 at step 3" in said
        assert "from step 3 to 6" in said
        assert "set model.decay_steps to 3" in said

    def test_the_advice_keeps_the_rate_and_needs_no_override(
        self, tmp_path: Path, moving: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rates, said = self.go_on(tmp_path, moving, caplog, decay_steps=3)
        assert rates == pytest.approx([1e-3] * 3)
        assert said == ""
        with pytest.raises(UsageError, match="decay_steps: None in the checkpoint, 4 in this run"):
            self.go_on(tmp_path, moving, caplog, decay_steps=4)

    def test_a_checkpoint_that_does_not_say_where_its_schedule_ends_is_compared_by_its_rate(
        self, tmp_path: Path, moving: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old = torch.load(moving, weights_only=True)
        del old["decay_end"], old["nonfinite"]
        for name in ("optimizer", "schedule", "on_nonfinite", "max_skipped_steps", "compile"):
            del old["hyper_parameters"][name]
        torch.save(old, tmp_path / "old.ckpt")
        rates, said = self.go_on(tmp_path, tmp_path / "old.ckpt", caplog, decay_steps=3)
        assert (rates, said) == (pytest.approx([1e-3] * 3), "")
        rates, said = self.go_on(tmp_path, tmp_path / "old.ckpt", caplog)
        assert "set model.decay_steps to the last step of the run that wrote it" in said
        with pytest.raises(UsageError, match="decay_steps: None in the checkpoint, 9 in this run"):
            self.go_on(tmp_path, tmp_path / "old.ckpt", caplog, decay_steps=9)
        with pytest.raises(UsageError, match="optimizer: 'AdamW' in the checkpoint, 'SGD' in this run"):
            self.go_on(tmp_path, tmp_path / "old.ckpt", caplog, optimizer=SGD())
        self.go_on(tmp_path, tmp_path / "old.ckpt", caplog, optimizer=AdamW())

    def test_the_stable_part_of_a_wsd_schedule_takes_another_length_without_a_word(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Save(Callback):
            def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
                if trainer.global_step == 3:
                    trainer.save_checkpoint(tmp_path / "stable.ckpt")

        lit = LitHybridLM(CONFIG, learning_rate=1e-2, warmup_steps=1, schedule=WSD())
        fit(tmp_path, DATA, lit=lit, max_steps=8, callbacks=[Save()])
        rates, said = self.go_on(tmp_path, tmp_path / "stable.ckpt", caplog, schedule=WSD())
        assert rates == pytest.approx([1e-2] * 3)  # of 6 steps the last is a decay, from the peak
        assert said == ""


def test_a_resumed_checkpoint_whose_hyper_parameters_lie_is_taken_by_its_optimiser(
    tmp_path: Path, checkpoint: Path
) -> None:
    """Earlier versions ignored a changed rate, and saved the new one as a hyper-parameter."""
    lying = torch.load(checkpoint, weights_only=True)
    lying["hyper_parameters"]["learning_rate"] = 5e-3
    torch.save(lying, tmp_path / "lying.ckpt")
    with pytest.raises(UsageError, match=r"learning_rate: 0.01 in the checkpoint, 0.005 in this run"):
        resume(tmp_path, tmp_path / "lying.ckpt", learning_rate=5e-3)
    resume(tmp_path, tmp_path / "lying.ckpt")
