"""NaN and infinity in a known batch: training stops or leaves the step out, and never saves what they touched."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from packmamba.errors import NonFiniteError, UsageError
from packmamba.packing import PackedBatch
from packmamba.training import lit as lit_module
from packmamba.training import nonfinite
from packmamba.training.callbacks import LastCheckpoint
from packmamba.training.lit import LitHybridLM
from packmamba.training.nonfinite import spread
from packmamba.training.optimizers import SGD, AdamW, Muon, OptimizerInputs
from packmamba.training.schedules import learning_rate_factor
from tests.training.test_lit import CONFIG, Data, Recorder, batch_of, documents, fit, make_trainer

NAN, INF = float("nan"), float("inf")


def data(count: int = 8, accumulation: int = 1) -> Data:
    """Batch i has the documents of rows 10 i and 10 i + 1."""
    targets = accumulation * batch_of(documents([9, 5])).num_targets
    rows = [torch.tensor([10 * i, 10 * i + 1]) for i in range(count)]
    docs = [documents([9, 5], seed=i) for i in range(count)]
    return Data([batch_of(docs[i], doc_ids=rows[i], step_targets=targets) for i in range(count)])


class Poisoned(LitHybridLM):
    """The losses of some batches are not what they should be."""

    def __init__(self, losses: dict[int, float], **options: Any) -> None:
        super().__init__(CONFIG, warmup_steps=2, decay_steps=20, **options)
        self.losses = losses

    def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
        assert self.model is not None
        loss = type(self.model).loss
        self.model.loss = lambda *args, **kwargs: loss(self.model, *args, **kwargs) * self.losses.get(batch_idx, 1.0)  # type: ignore[method-assign]
        return super().training_step(batch, batch_idx)


class PoisonedGradient(Callback):
    """The gradient of one parameter after some batches' backward."""

    def __init__(self, batches: dict[int, float]) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.at = batch_idx

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gradient = next(pl_module.parameters()).grad
        if self.at in self.batches and gradient is not None:
            gradient[0] += self.batches[self.at]


class Weights(Callback):
    """The weights and the optimiser's moments before each step, the last after all of them."""

    def __init__(self) -> None:
        self.before: list[list[torch.Tensor]] = []

    def _take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = [x.clone() for s in trainer.optimizers[0].state.values() for x in s.values() if torch.is_tensor(x)]
        self.before.append([p.detach().clone() for p in pl_module.parameters()] + state)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._take(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take(trainer, pl_module)

    def changed(self) -> list[bool]:
        """Whether each step changed anything."""
        return [
            len(before) != len(after) or any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            for before, after in zip(self.before, self.before[1:], strict=False)
        ]


@pytest.fixture(params=["read at once", "read later"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a CPU; and as on a GPU, where fused AdamW leaves a step out by itself, and the host reads of it late."""
    if request.param == "read later":
        monkeypatch.setattr(nonfinite, "reads_later", lambda device: True)
        monkeypatch.setattr(lit_module, "OptimizerInputs", lambda **o: OptimizerInputs(**(o | {"fused": True})))
    return request.param


class TestStop:
    @pytest.mark.parametrize("loss", [NAN, INF, -INF], ids=str)
    def test_names_the_step_the_documents_and_the_last_good_checkpoint(
        self, tmp_path: Path, reading: str, loss: float
    ) -> None:
        lit, weights = Poisoned({5: loss}), Weights()
        last = LastCheckpoint(every_n_train_steps=1)
        with pytest.raises(NonFiniteError) as error:
            fit(tmp_path, data(), lit=lit, max_steps=8, enable_checkpointing=True, callbacks=[weights, last])
        path = tmp_path / "checkpoints" / "last.ckpt"
        said = str(error.value)
        assert f"optimiser step 5: the loss is {loss:g} in batch 5 of the epoch (document rows 50, 51)" in said
        assert f"the last good checkpoint is {path}" in said
        assert "--model.on_nonfinite skip" in said
        assert "\n" not in said
        assert isinstance(error.value, UsageError)
        saved = torch.load(path, weights_only=True)
        assert saved["global_step"] == 5
        assert all(weight.isfinite().all() for weight in saved["state_dict"].values())
        assert all(parameter.isfinite().all() for parameter in lit.parameters()), "the weights are untouched"

    def test_a_checkpoint_that_nothing_was_saved_before_is_not_invented(self, tmp_path: Path, reading: str) -> None:
        with pytest.raises(NonFiniteError, match="no checkpoint has been saved yet"):
            fit(tmp_path, data(), lit=Poisoned({0: NAN}), max_steps=8)

    def test_the_last_step_of_training_is_looked_at_too(self, tmp_path: Path, reading: str) -> None:
        with pytest.raises(NonFiniteError, match="optimiser step 3"):
            fit(tmp_path, data(), lit=Poisoned({3: NAN}), max_steps=4)
        with pytest.raises(NonFiniteError, match="optimiser step 3"):
            fit(tmp_path, data(), lit=Poisoned({3: NAN}), max_steps=4, log_every_n_steps=50)

    def test_validation_does_not_begin_with_what_a_nan_has_touched(self, tmp_path: Path, reading: str) -> None:
        class Count(Callback):
            validations = 0

            def on_validation_end(self, *args: Any) -> None:
                self.validations += 1

        both, count = data(), Count()
        both.val = both.train[:1]
        options = {"max_steps": 8, "val_check_interval": 2, "log_every_n_steps": 50, "callbacks": [count]}
        with pytest.raises(NonFiniteError, match="optimiser step 3"):
            fit(tmp_path, both, lit=Poisoned({3: NAN}), **options)
        assert count.validations == 1

    @pytest.mark.parametrize("number", [NAN, INF], ids=str)
    def test_a_gradient_of_a_finite_loss_counts_too(self, tmp_path: Path, reading: str, number: float) -> None:
        poison = PoisonedGradient({2: number})
        message = r"step 2: the loss is finite, the gradient is not, in batch 2 of the epoch \(document rows 20, 21\)"
        with pytest.raises(NonFiniteError, match=message):
            fit(tmp_path, data(), lit=Poisoned({}), max_steps=8, callbacks=[poison])

    @pytest.mark.parametrize("clip", [{"gradient_clip_val": None}, {"gradient_clip_algorithm": "value"}], ids=str)
    def test_without_clipping_by_norm_too(self, tmp_path: Path, clip: dict[str, Any]) -> None:
        with pytest.raises(NonFiniteError, match="optimiser step 2"):
            fit(tmp_path, data(), lit=Poisoned({2: NAN}), max_steps=8, log_every_n_steps=50, **clip)

    @pytest.mark.parametrize("bad", [4, 5, 6, 7])
    @pytest.mark.parametrize("what", ["loss", "gradient"])
    def test_of_accumulated_batches_the_one_that_caused_it_is_named(
        self, tmp_path: Path, reading: str, bad: int, what: str
    ) -> None:
        lit = Poisoned({bad: NAN} if what == "loss" else {})
        poison = PoisonedGradient({} if what == "loss" else {bad: NAN})
        with pytest.raises(NonFiniteError) as error:
            fit(tmp_path, data(8, 4), lit=lit, accumulate_grad_batches=4, max_steps=4, callbacks=[poison])
        assert "optimiser step 1: " in str(error.value)
        assert f"in batch {bad} of the epoch (document rows {10 * bad}, {10 * bad + 1})" in str(error.value)
        assert str(error.value).count("of the epoch") == 1

    def test_many_documents_are_counted(self, tmp_path: Path) -> None:
        many = [batch_of(documents([2] * 30), doc_ids=torch.arange(30))]
        with pytest.raises(NonFiniteError, match=r"document rows 0, 1, .* 19 and 10 more\)"):
            fit(tmp_path, Data(many), lit=Poisoned({0: NAN}))

    def test_weights_that_were_not_finite_to_begin_with_are_said(self, tmp_path: Path, reading: str) -> None:
        lit, _ = fit(tmp_path, data(), lit=Poisoned({}), max_steps=2)
        lit.trainer.save_checkpoint(tmp_path / "a.ckpt")
        bad = torch.load(tmp_path / "a.ckpt", weights_only=True)
        bad["state_dict"]["model.backbone.norm_f.weight"][3] = NAN
        torch.save(bad, tmp_path / "bad.ckpt")
        with pytest.raises(NonFiniteError, match="the weights are not finite to begin with"):
            make_trainer(tmp_path).fit(Poisoned({}), data(), ckpt_path=tmp_path / "bad.ckpt")


class TestSkip:
    def test_leaves_weights_and_moments_alone_and_goes_on(
        self, tmp_path: Path, reading: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        lit, weights = Poisoned({2: NAN, 3: INF, 5: NAN}, on_nonfinite="skip"), Weights()
        with caplog.at_level(logging.INFO):
            _, recorder = fit(tmp_path, data(), lit=lit, max_steps=8, callbacks=[weights])
        assert weights.changed() == [True, True, False, False, True, False, True, True]
        assert [row["skipped_steps"] for row in recorder.rows] == [0, 0, 1, 2, 2, 3, 3, 3]
        assert math.isnan(recorder.rows[2]["train/loss"])
        assert all(math.isfinite(recorder.rows[i]["train/loss"]) for i in (0, 1, 4, 6, 7))
        factors = [learning_rate_factor(step, warmup_steps=2, decay_steps=20, min_ratio=0.1) for step in range(8)]
        assert [row["lr"] for row in recorder.rows] == pytest.approx([1e-3 * f for f in factors]), "the rate goes on"
        said = [line for line in caplog.messages if "is left out" in line]
        assert len(said) == 3
        assert said[0].startswith("optimiser step 2: the loss is nan in batch 2 of the epoch (document rows 20, 21)")

    def test_is_the_run_without_the_bad_steps(self, tmp_path: Path, reading: str) -> None:
        """With a rate that does not change, so that nothing but the weights' updates can differ."""
        options: dict[str, Any] = {"min_learning_rate_ratio": 1.0}
        skipped, _ = fit(tmp_path, data(6), lit=Poisoned({2: NAN, 4: INF}, on_nonfinite="skip", **options), max_steps=6)
        good = Data([batch for i, batch in enumerate(data(6).train) if i not in (2, 4)])
        without, _ = fit(tmp_path, good, lit=Poisoned({}, **options), max_steps=4)
        for name, weight in without.state_dict().items():
            assert torch.equal(weight, skipped.state_dict()[name]), name

    @pytest.mark.parametrize("optimizer", [AdamW(), Muon(), SGD()], ids=lambda o: type(o).__name__)
    def test_every_optimizer_leaves_the_step_out(self, tmp_path: Path, reading: str, optimizer: Any) -> None:
        lit, weights = Poisoned({0: NAN, 2: NAN}, on_nonfinite="skip", optimizer=optimizer), Weights()
        fit(tmp_path, data(), lit=lit, max_steps=4, callbacks=[weights])
        changed = weights.changed()
        assert changed[1:] == [True, False, True]
        assert all(parameter.isfinite().all() for parameter in lit.parameters())

    def test_stops_after_too_many_in_a_row(self, tmp_path: Path, reading: str) -> None:
        three = dict.fromkeys((0, 2, 3, 4), NAN)
        lit = Poisoned(three, on_nonfinite="skip", max_skipped_steps=3)
        fit(tmp_path, data(), lit=lit, max_steps=8)
        with pytest.raises(NonFiniteError, match=r"step 4: .*3 steps in a row.*more than model.max_skipped_steps 2"):
            fit(tmp_path, data(), lit=Poisoned(three, on_nonfinite="skip", max_skipped_steps=2), max_steps=8)

    def test_the_count_goes_on_where_a_run_is_resumed(self, tmp_path: Path) -> None:
        lit, _ = fit(tmp_path, data(), lit=Poisoned({1: NAN}, on_nonfinite="skip"), max_steps=2)
        lit.trainer.save_checkpoint(tmp_path / "a.ckpt")
        resumed, recorder = Poisoned({}, on_nonfinite="skip"), Recorder()
        recorder.rows = [{}] * 2
        trainer = make_trainer(tmp_path, callbacks=[recorder])
        trainer.fit(resumed, data(), ckpt_path=tmp_path / "a.ckpt")
        assert [row["skipped_steps"] for row in recorder.rows[2:]] == [1, 1]

    def test_a_limit_without_skipping_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"model.max_skipped_steps 3 has no effect with model.on_nonfinite stop"):
            LitHybridLM(CONFIG, max_skipped_steps=3)
        with pytest.raises(UsageError, match="on_nonfinite must be stop or skip, got 'ignore'"):
            LitHybridLM(CONFIG, on_nonfinite="ignore")  # type: ignore[arg-type]


class TestScaledGradients:
    """16-mixed: losses are scaled so that small gradients do not vanish, and large ones overflow now and then."""

    def plugin(self, scale: float) -> MixedPrecision:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # pyright: ignore[reportPrivateImportUsage]
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        plugin.forward_context = lambda: torch.autocast("cpu", enabled=False)  # type: ignore[method-assign]
        return plugin

    def test_an_overflow_is_the_scalers_business(self, tmp_path: Path) -> None:
        plugin, weights = self.plugin(2.0**127), Weights()
        _, recorder = fit(tmp_path, data(), lit=Poisoned({}), max_steps=8, plugins=[plugin], callbacks=[weights])
        changed = weights.changed()
        assert changed == sorted(changed), "steps are left out until the scale fits"
        assert not changed[0]
        assert changed[-1]
        assert len(recorder.rows) == 8

    def test_a_loss_that_is_not_finite_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(NonFiniteError, match="step 2: the loss is nan in batch 2"):
            fit(tmp_path, data(), lit=Poisoned({2: NAN}), max_steps=8, plugins=[self.plugin(4.0)])
        lit, weights = Poisoned({2: NAN}, on_nonfinite="skip"), Weights()
        fit(tmp_path, data(), lit=lit, max_steps=4, plugins=[self.plugin(4.0)], callbacks=[weights])
        assert weights.changed() == [True, True, False, True]

    def test_a_gradient_that_no_scale_helps_is_not(self, tmp_path: Path) -> None:
        poison = PoisonedGradient(dict.fromkeys(range(8), INF))
        with pytest.raises(NonFiniteError, match="step 3: the loss is finite, the gradient is not"):
            fit(tmp_path, data(), lit=Poisoned({}), max_steps=8, plugins=[self.plugin(4.0)], callbacks=[poison])


class TestEvaluation:
    @pytest.mark.parametrize("command", ["validate", "test", "predict"])
    @pytest.mark.parametrize("number", [NAN, -INF], ids=str)
    def test_weights_that_are_not_finite_are_not_evaluated(self, tmp_path: Path, command: str, number: float) -> None:
        both = data()
        both.val = both.train[:1]
        lit, _ = fit(tmp_path, data(), lit=Poisoned({}), max_steps=1)
        lit.trainer.save_checkpoint(tmp_path / "a.ckpt")
        getattr(make_trainer(tmp_path), command)(Poisoned({}), both, ckpt_path=tmp_path / "a.ckpt")
        bad = torch.load(tmp_path / "a.ckpt", weights_only=True)
        bad["state_dict"]["model.backbone.norm_f.weight"][3] = number
        torch.save(bad, tmp_path / "bad.ckpt")
        with pytest.raises(NonFiniteError) as error:
            getattr(make_trainer(tmp_path), command)(Poisoned({}), both, ckpt_path=tmp_path / "bad.ckpt")
        assert f"weights of {tmp_path / 'bad.ckpt'} are NaN or infinite" in str(error.value)
        assert "the first is model.backbone.norm_f.weight" in str(error.value)


class TestArithmetic:
    @pytest.mark.parametrize("loss", [0.0, 1.5, -3.25e-20, 7e30])
    def test_finite_losses_are_the_same_to_the_last_bit(self, loss: float) -> None:
        for factor in (1 / 3, 8 / 1_000_003, 1.0):
            x = torch.tensor(loss, requires_grad=True)
            (x * spread(factor, x)).backward()
            expected = torch.tensor(loss, requires_grad=True)
            (expected * factor).backward()
            assert x.grad is not None
            assert torch.equal(x.grad, expected.grad)
            assert torch.equal(x * spread(factor, x), x * factor)

    @pytest.mark.parametrize("loss", [NAN, INF, -INF], ids=str)
    def test_the_gradient_of_any_other_is_nan(self, loss: float) -> None:
        x = torch.tensor(loss, requires_grad=True)
        (x * spread(0.5, x)).backward()
        assert x.grad is not None
        assert x.grad.isnan()


@pytest.mark.gpu
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_step_on_a_gpu_waits_for_nothing(tmp_path: Path, on_nonfinite: Any) -> None:
    """CUDA raises an error where the host would wait, from the first backward's end to the end of the step."""

    class Watched(Poisoned):
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if self.trainer.global_step > 1 else "default")
            super().configure_gradient_clipping(*args, **kwargs)

        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            torch.cuda.set_sync_debug_mode("default")

    fit(tmp_path, data(), lit=Watched({}, on_nonfinite=on_nonfinite), accelerator="gpu", log_every_n_steps=50)


@pytest.mark.gpu
def test_a_gpu_leaves_the_step_out_by_itself_and_stops_before_a_checkpoint_is_saved(tmp_path: Path) -> None:
    lit, weights = Poisoned({2: NAN, 5: INF}, on_nonfinite="skip"), Weights()
    fit(tmp_path, data(), lit=lit, max_steps=8, callbacks=[weights], accelerator="gpu", log_every_n_steps=50)
    assert lit.trainer.optimizers[0].param_groups[0]["fused"]
    assert weights.changed() == [True, True, False, True, True, False, True, True]
    assert lit._finite.skipped_steps == 2
    last = LastCheckpoint(every_n_train_steps=1)
    options = {"accelerator": "gpu", "enable_checkpointing": True, "callbacks": [last], "log_every_n_steps": 50}
    for optimizer in (AdamW(), Muon()):
        with pytest.raises(NonFiniteError, match=r"optimiser step 3: the loss is nan in batch 3 .*rows 30, 31"):
            fit(tmp_path, data(), lit=Poisoned({3: NAN}, optimizer=optimizer), max_steps=8, **options)
        saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == 3
        assert all(weight.isfinite().all() for weight in saved["state_dict"].values())
