"""What an optimiser step costs beside the model: copies, clipping, the optimiser's kernel, logs; and nothing twice."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from packmamba.metrics import StepMeter
from packmamba.packing import PackedBatch
from packmamba.training import lit as lit_module
from packmamba.training.lit import LitHybridLM
from tests.training.test_lit import CONFIG, Data, Recorder, batch_of, documents, fit, make_trainer


def test_batches_move_to_the_device_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[torch.device, bool]] = []
    move = PackedBatch.to

    def record(self: PackedBatch, device: Any, non_blocking: bool = False) -> PackedBatch:
        moves.append((device, non_blocking))
        return move(self, device, non_blocking)

    monkeypatch.setattr(PackedBatch, "to", record)
    batches = [batch_of(documents([9, 5]))]
    fit(tmp_path, Data(batches * 3, batches), max_steps=3, limit_val_batches=1)
    assert len(moves) >= 4
    assert set(moves) == {(torch.device("cpu"), True)}


class Counter(Callback):
    """How often each step, from clipping on, reads a tensor on the host, and logs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[dict[str, int]] = []
        self.counting = False
        places = [(torch.Tensor, name) for name in ("tolist", "cpu", "__float__")]
        for owner, name in [*places, (LitHybridLM, "log"), (StepMeter, "totals")]:
            self._count(monkeypatch, owner, name)

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.counting:
                self.steps[-1][name] = self.steps[-1].get(name, 0) + 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.steps.append({})
        self.counting = True


class Counted(LitHybridLM):
    """Ends counting when the next batch comes, before callbacks look at the log."""

    def __init__(self, counter: Counter) -> None:
        super().__init__(CONFIG, learning_rate=1e-3, warmup_steps=2)
        self.counter = counter

    def on_before_batch_transfer(self, batch: PackedBatch, dataloader_idx: int) -> PackedBatch:
        self.counter.counting = False
        return super().on_before_batch_transfer(batch, dataloader_idx)


@pytest.mark.parametrize("clip", [{}, {"gradient_clip_val": None}, {"gradient_clip_algorithm": "value"}], ids=str)
def test_only_logged_steps_read_from_the_device_and_their_numbers_are_those_of_logging_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: dict[str, Any]
) -> None:
    data = Data([batch_of(documents([9, 5, i + 2], seed=i)) for i in range(9)])
    _, always = fit(tmp_path, data, max_steps=9, **clip)
    counter = Counter(monkeypatch)
    _, sometimes = fit(
        tmp_path, data, lit=Counted(counter), max_steps=9, log_every_n_steps=3, callbacks=[counter], **clip
    )
    logged = [bool(step.get("log")) for step in counter.steps]
    assert logged == [False, False, True] * 3
    assert [step for step, is_logged in zip(counter.steps, logged, strict=True) if not is_logged] == [{}] * 6
    assert all(step["totals"] == step["tolist"] == 1 for step in counter.steps if step)
    for step in (2, 5, 8):
        expected, actual = always.rows[step], sometimes.rows[step]
        assert set(actual) == set(expected)
        for name in set(expected) - {"tokens_per_second"}:
            assert actual[name] == expected[name], name


def test_throughput_is_that_of_the_whole_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("packmamba.metrics.time.perf_counter", lambda: float(next(clock)))
    windows: list[tuple[int, float]] = []
    seconds = StepMeter.window_seconds

    def record(self: StepMeter) -> float:
        windows.append((self.window_tokens, seconds(self)))
        return windows[-1][1]

    monkeypatch.setattr(StepMeter, "window_seconds", record)
    data = Data([batch_of(documents([9, 5, i + 2])) for i in range(6)])
    _, recorder = fit(tmp_path, data, max_steps=6, log_every_n_steps=3)
    assert [tokens for tokens, _ in windows] == [3 * 14 + 2 + 3 + 4, 3 * 14 + 5 + 6 + 7]
    assert recorder.rows[5]["tokens_per_second"] == pytest.approx(windows[1][0] / windows[1][1])


class Gradients(Callback):
    """The gradients of the first step, before and after clipping."""

    def __init__(self) -> None:
        self.before: list[torch.Tensor] = []
        self.after: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, lit: Any, optimizer: Any) -> None:
        self.before = self.before or [p.grad.clone() for p in optimizer_parameters(optimizer)]

    def on_before_zero_grad(self, trainer: Trainer, lit: Any, optimizer: Any) -> None:
        if self.before and not self.after:
            self.after = [p.grad.clone() for p in optimizer_parameters(optimizer)]


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize(
    ("value", "algorithm"), [(0.01, None), (0.01, "norm"), (1e6, "norm"), (0.001, "value"), (None, None), (0, "value")]
)
def test_gradients_are_clipped_as_lightning_clips_them_and_their_norm_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float | None, algorithm: str | None
) -> None:
    norms: list[int] = []
    total_norm = torch.nn.utils.clip_grad._get_total_norm

    def count(*args: Any, **kwargs: Any) -> torch.Tensor:
        norms.append(1)
        return total_norm(*args, **kwargs)

    for owner, name in ((torch.nn.utils.clip_grad, "_get_total_norm"), (torch.nn.utils, "get_total_norm")):
        monkeypatch.setattr(owner, name, count)

    class Lightning(LitHybridLM):
        def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val=None, gradient_clip_algorithm=None):  # type: ignore[override]
            self._optimizer_step = {"lr": 0.0}
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    options = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm, "max_steps": 2}
    data = Data([batch_of(documents([9, 5])), batch_of(documents([7, 8]))])
    ours, theirs = Gradients(), Gradients()
    _, recorder = fit(tmp_path, data, callbacks=[ours], **options)
    assert len(norms) == 2
    torch.manual_seed(0)
    fit(tmp_path, data, lit=Lightning(CONFIG, learning_rate=1e-3, warmup_steps=2), callbacks=[theirs], **options)
    assert len(ours.after) == len(ours.before) > 5
    for mine, lightnings in zip(ours.after, theirs.after, strict=True):
        assert torch.equal(mine, lightnings)
    norm = torch.cat([gradient.flatten() for gradient in ours.before]).norm()
    assert recorder.rows[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    clipped = any(not torch.equal(a, b) for a, b in zip(ours.before, ours.after, strict=True))
    assert clipped == bool(value and value < 1)


@pytest.mark.parametrize(
    ("on_gpu", "scaled", "fused"), [(True, False, True), (True, True, None), (False, False, None)], ids=str
)
def test_adamw_is_fused_on_a_gpu_unless_gradients_are_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, scaled: bool, fused: bool | None
) -> None:
    made: list[Any] = []

    class AdamW(torch.optim.AdamW):
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append(options["fused"])
            super().__init__(*args, **options)

    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    monkeypatch.setattr(lit_module, "scales_gradients", lambda trainer: scaled)
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu)
    lit = LitHybridLM(CONFIG, decay_steps=5)
    lit._trainer = make_trainer(tmp_path)
    lit.configure_model()
    lit.configure_optimizers()
    assert made == [fused]


def test_a_checkpoint_of_a_fused_optimiser_goes_on_unfused_where_there_is_no_gpu(tmp_path: Path) -> None:
    data = Data([batch_of(documents([9, 5]))] * 4)
    lit, _ = fit(tmp_path, data, max_steps=2)
    lit.trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    fused = copy.deepcopy(checkpoint)
    for group in fused["optimizer_states"][0]["param_groups"]:
        assert group["fused"] is None
        group["fused"] = True
    torch.save(fused, tmp_path / "fused.ckpt")
    weights = []
    for name in ("a", "fused"):
        resumed = LitHybridLM(CONFIG, learning_rate=1e-3, warmup_steps=2)
        recorder = Recorder()
        recorder.rows = [{}] * 2
        trainer = make_trainer(tmp_path, max_steps=4, callbacks=[recorder])
        trainer.fit(resumed, data, ckpt_path=tmp_path / f"{name}.ckpt")
        assert [group["fused"] for group in trainer.optimizers[0].param_groups] == [None, None]
        weights.append(resumed.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
