"""The moving average of the weights: its arithmetic, validation, checkpoints, and a run that is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from packmamba.training.averaging import EMA
from packmamba.training.callbacks import LastCheckpoint
from packmamba.training.lit import LitHybridLM
from tests.training.test_lit import CONFIG, Data, batch_of, documents, fit, make_trainer

DATA = Data([batch_of(documents([9, 5, 20], seed=i)) for i in range(8)], [batch_of(documents([30], seed=9))])


class Weights(Callback):
    """One weight: as each step leaves it, as each validation uses it."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.trained.append(weight_of(pl_module.state_dict()))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.validated.append(weight_of(pl_module.state_dict()))


def weight_of(state: dict[str, Any]) -> torch.Tensor:
    return state["model.backbone.layers.0.mixer.in_proj.weight"].clone()


def lit() -> LitHybridLM:
    return LitHybridLM(CONFIG, learning_rate=1e-2, warmup_steps=1, decay_steps=20)


def train(folder: Path, max_steps: int, data: Data = DATA, **options: Any) -> tuple[LitHybridLM, Weights]:
    """Validates and saves after steps 3 and 6, and saves at the end."""
    torch.manual_seed(0)
    module, weights = lit(), Weights()
    trainer = make_trainer(
        folder,
        max_steps=max_steps,
        enable_checkpointing=True,
        val_check_interval=3,
        callbacks=[EMA(decay=0.5), weights, LastCheckpoint()],
    )
    trainer.fit(module, data, **options)
    return module, weights


def test_validation_uses_the_average_and_training_its_own_weights(tmp_path: Path) -> None:
    module, weights = train(tmp_path, 6)
    plain, _ = fit(tmp_path, DATA, lit=lit(), max_steps=6)
    assert torch.equal(weights.trained[-1], weight_of(plain.state_dict())), "the average does not disturb training"
    average = weights.trained[0]  # the callback takes the first update as it is
    averages = []
    for weight in weights.trained:
        average = 0.5 * average + 0.5 * weight if averages else weight
        averages.append(average)
    for used, expected in zip(weights.validated, (averages[2], averages[5]), strict=True):
        torch.testing.assert_close(used, expected)
    torch.testing.assert_close(weight_of(module.state_dict()), averages[5])


@pytest.mark.parametrize("stop", [3, 4], ids=["after a validation", "between validations"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path: Path, stop: int) -> None:
    straight, expected = train(tmp_path / "straight", 7)
    train(tmp_path / "halves", stop)
    path = tmp_path / "halves" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == stop
    assert torch.equal(weight_of(saved["current_model_state"]), expected.trained[stop - 1])
    rest = Data(DATA.train[stop:] + DATA.train[:stop], DATA.val)
    resumed, weights = train(tmp_path / "rest", 7, rest, ckpt_path=path)
    for before, after in zip(expected.trained[stop:], weights.trained, strict=True):
        assert torch.equal(before, after)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_is_evaluated_with_the_average(tmp_path: Path) -> None:
    module, _ = train(tmp_path, 4)
    path = tmp_path / "checkpoints" / "last.ckpt"
    loaded = LitHybridLM.load_from_checkpoint(path, weights_only=True)
    for name, value in module.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    losses = []
    for callbacks in ([], [EMA()]):
        trainer = make_trainer(tmp_path, callbacks=callbacks)
        losses.append(trainer.validate(lit(), DATA, ckpt_path=path, verbose=False)[0]["val/loss"])
    assert losses[0] == losses[1]


def test_a_checkpoint_without_an_average_begins_one(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, DATA, lit=lit(), max_steps=3)
    module.trainer.save_checkpoint(tmp_path / "plain.ckpt")
    _, weights = train(tmp_path, 6, Data(DATA.train[3:] + DATA.train[:3], DATA.val), ckpt_path=tmp_path / "plain.ckpt")
    assert len(weights.trained) == 3
