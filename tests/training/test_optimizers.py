"""Optimisers by name: which parameters each changes and how, and that a run with any of them resumes exactly."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch

from packmamba.errors import CannotRunError, MissingPackageError, UsageError, UsageTypeError
from packmamba.model import HybridLM, hidden_matrices
from packmamba.training.lit import LitHybridLM
from packmamba.training.optimizers import SGD, AdamW, AdamW8bit, Muon, Optimizer, OptimizerInputs, Together
from tests.model.guarantee import small_config
from tests.training.test_lit import CONFIG, Data, batch_of, documents, fit, make_trainer

DATA = Data([batch_of(documents([9, 5, 20], seed=i)) for i in range(8)])


@dataclass(frozen=True, kw_only=True)
class Signs(Optimizer):
    """One's own: plain torch, and a field."""

    scale: float = 1.0

    def build(self, inputs: OptimizerInputs) -> torch.optim.Optimizer:
        return torch.optim.Adamax(inputs.groups, lr=self.scale * inputs.learning_rate)


class Undescribed(Optimizer):
    def build(self, inputs: OptimizerInputs) -> torch.optim.Optimizer:
        raise AssertionError


def names_of(model: torch.nn.Module, parameters: Any) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in parameters}


class TestMuon:
    @pytest.mark.parametrize("tied", [True, False])
    def test_takes_the_projections_and_leaves_the_rest_to_adamw(self, tied: bool) -> None:
        model = HybridLM(small_config("1*-", tie_embeddings=tied))
        assert names_of(model, hidden_matrices(model)) == {
            f"backbone.layers.{name}.weight"
            for name in (
                *(f"0.mixer.{part}" for part in ("in_proj", "x_proj", "dt_proj", "out_proj")),
                *("1.mixer.in_proj", "1.mixer.out_proj", "2.mixer.fc1", "2.mixer.fc2"),
            )
        }

    def test_every_parameter_is_in_one_group_and_decays_as_with_adamw(self, tmp_path: Path) -> None:
        decays = []
        for optimizer in (AdamW(), Muon()):
            lit, _ = fit(tmp_path, DATA, lit=LitHybridLM(CONFIG, optimizer=optimizer), max_steps=1)
            groups = lit.trainer.optimizers[0].param_groups
            decays.append({name: g["weight_decay"] for g in groups for name in names_of(lit, g["params"])})
            assert sum(len(group["params"]) for group in groups) == len(list(lit.parameters()))
        assert decays[0] == decays[1]

    def test_a_step_is_that_of_torchs_muon_and_adamw_apart(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        ours, theirs = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        theirs.load_state_dict(ours.state_dict())
        build = Muon(momentum=0.8, adjust_lr="original").build
        inputs = {"learning_rate": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
        groups = [
            {"params": [ours.weight], "weight_decay": 0.3},
            {"params": [ours.bias], "weight_decay": 0.0},
        ]
        optimizer = build(OptimizerInputs(groups=groups, matrices=[ours.weight], **inputs))
        muon = torch.optim.Muon([theirs.weight], lr=0.1, momentum=0.8, weight_decay=0.3)
        adamw = torch.optim.AdamW([theirs.bias], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
        calls = []
        for step in range(3):
            x = torch.randn(4, 8)

            def closure(x: torch.Tensor = x) -> torch.Tensor:
                calls.append(torch.is_grad_enabled())
                optimizer.zero_grad()
                loss = ours(x).square().sum()
                loss.backward()
                return loss

            optimizer.step(closure)
            for each in (muon, adamw):
                each.zero_grad()
            theirs(x).square().sum().backward()
            muon.step()
            adamw.step()
            assert len(calls) == step + 1
        assert all(calls)
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)

    def test_without_a_matrix_it_says_so(self) -> None:
        norm = torch.nn.LayerNorm(4)
        groups = [{"params": list(norm.parameters()), "weight_decay": 0.0}]
        inputs = OptimizerInputs(groups=groups, matrices=[], learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8)
        with pytest.raises(CannotRunError, match="needs a matrix of a hidden layer"):
            Muon().build(inputs)

    def test_with_matrices_alone_there_is_nothing_to_combine(self) -> None:
        weight = torch.nn.Parameter(torch.ones(4, 4))
        groups = [{"params": [weight], "weight_decay": 0.0}]
        inputs = OptimizerInputs(groups=groups, matrices=[weight], learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8)
        assert not isinstance(Muon().build(inputs), Together)


class TestEveryOptimizer:
    @pytest.mark.parametrize(
        "optimizer", [AdamW(), Muon(), SGD(), SGD(momentum=0.0), Signs(scale=0.5)], ids=lambda o: f"{o}"
    )
    def test_trains_and_resumes_exactly(self, tmp_path: Path, optimizer: Optimizer) -> None:
        def lit() -> LitHybridLM:
            return LitHybridLM(CONFIG, optimizer=optimizer, decay_steps=6, warmup_steps=2, learning_rate=1e-2)

        straight, _ = fit(tmp_path, DATA, lit=lit(), max_steps=6)
        half, _ = fit(tmp_path, DATA, lit=lit(), max_steps=3)
        half.trainer.save_checkpoint(tmp_path / "half.ckpt")
        torch.load(tmp_path / "half.ckpt", weights_only=True)
        rest = Data(DATA.train[3:] + DATA.train[:3])
        resumed = lit()
        make_trainer(tmp_path, max_steps=6).fit(resumed, rest, ckpt_path=tmp_path / "half.ckpt")
        for name, weight in straight.state_dict().items():
            assert torch.equal(weight, resumed.state_dict()[name]), name

    def test_is_in_the_checkpoint_and_made_again_from_it(self, tmp_path: Path) -> None:
        lit, _ = fit(tmp_path, DATA, lit=LitHybridLM(CONFIG, optimizer=Muon(momentum=0.8)), max_steps=1)
        lit.trainer.save_checkpoint(tmp_path / "a.ckpt")
        loaded = LitHybridLM.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
        assert loaded.optimizer == Muon(momentum=0.8)

    @pytest.mark.parametrize(
        ("optimizer", "error", "message"),
        [
            ({"class_path": "nowhere.Adam", "init_args": {}}, UsageError, "nowhere.Adam cannot be imported"),
            ({"class_path": "collections.Counter", "init_args": {}}, UsageError, "Counter is no Optimizer"),
            ("AdamW", UsageTypeError, "optimizer must be a Optimizer such as those of packmamba.training.optimizers"),
            (Undescribed(), UsageTypeError, "Undescribed must be a dataclass"),
        ],
        ids=["missing", "another class", "a string", "no dataclass"],
    )
    def test_another_object_is_refused(self, optimizer: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            LitHybridLM(CONFIG, optimizer=optimizer)

    @pytest.mark.parametrize("option", [{"betas": (0.8, 0.9)}, {"eps": 1e-6}])
    def test_an_option_that_it_does_not_use_is_refused(self, option: dict[str, Any]) -> None:
        (name,) = option
        with pytest.raises(UsageError, match=rf"model.{name} .* has no effect with model.optimizer SGD"):
            LitHybridLM(CONFIG, optimizer=SGD(), **option)
        LitHybridLM(CONFIG, optimizer=Muon(), **option)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: SGD(momentum=1.0), "momentum must be from 0 to below 1, got 1.0"),
            (lambda: SGD(momentum=0.0, nesterov=True), "nesterov needs"),
            (lambda: Muon(momentum=-0.1), "momentum must be from 0 to below 1, got -0.1"),
            (lambda: Muon(ns_steps=0), "ns_steps must be from 1 to 99, got 0"),
            (lambda: Muon(adjust_lr="none"), "adjust_lr must be match_rms_adamw or original, got 'none'"),
        ],
        ids=range(5),
    )
    def test_an_option_out_of_range_is_named(self, make: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            make()


class TestAdamW8bit:
    def test_is_bitsandbytes_with_the_models_options(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[dict[str, Any]] = []

        class Fake(torch.optim.AdamW):
            def __init__(self, groups: Any, **options: Any) -> None:
                made.append(options)
                super().__init__(groups, **options)

        fake = types.ModuleType("bitsandbytes")
        fake.optim = types.SimpleNamespace(AdamW8bit=Fake)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
        lit = LitHybridLM(CONFIG, optimizer=AdamW8bit(), learning_rate=2e-3, betas=(0.8, 0.9), eps=1e-6)
        fit(tmp_path, DATA, lit=lit, max_steps=2)
        assert made == [{"lr": 2e-3, "betas": (0.8, 0.9), "eps": 1e-6}]
        assert {g["weight_decay"] for g in lit.trainer.optimizers[0].param_groups} == {0.1, 0.0}

    def test_without_bitsandbytes_it_says_how_to_install_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(MissingPackageError, match="pip install bitsandbytes"):
            fit(tmp_path, DATA, lit=LitHybridLM(CONFIG, optimizer=AdamW8bit()), max_steps=1)


def test_the_command_line_takes_names_and_classes_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model.optimizer NAME` with its options; YAML's class_path for a class that packmamba does not know."""
    jsonargparse = pytest.importorskip("jsonargparse")
    (tmp_path / "of_ones_own.py").write_text(
        "from dataclasses import dataclass\n"
        "from packmamba.training.optimizers import Optimizer\n"
        "from packmamba.training.schedules import Schedule\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Optimizer):\n"
        "    rho: float = 0.9\n"
        "    def build(self, inputs): ...\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Stairs(Schedule):\n"
        "    every: int = 10\n"
        "    def after_warmup(self, step, end, min_ratio): return 0.5 ** (step // self.every)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LitHybridLM, "model", skip={"compute"})

    def parsed(*arguments: str) -> LitHybridLM:
        config = "--model.config.layer_pattern=1-", "--model.config.vocab_size=50", "--model.config.d_model=32"
        return parser.instantiate(parser.parse_args([*config, *arguments])).model

    lit = parsed("--model.optimizer", "Muon", "--model.optimizer.momentum", "0.9", "--model.schedule", "WSD")
    assert lit.optimizer == Muon(momentum=0.9)
    lit = parsed(
        '--model.optimizer={"class_path": "of_ones_own.Mine", "init_args": {"rho": 0.5}}',
        "--model.schedule=of_ones_own.Stairs",
        "--model.schedule.every=3",
    )
    assert lit.hparams["optimizer"] == {"class_path": "of_ones_own.Mine", "init_args": {"rho": 0.5}}
    factors = [lit.schedule.factor(step, warmup_steps=0, decay_steps=9, min_ratio=0.1) for step in (0, 2, 3, 6)]
    assert factors == [1.0, 1.0, 0.5, 0.25]


def test_all_of_them_learn_at_the_rate_of_the_schedule(tmp_path: Path) -> None:
    same = Data([batch_of(documents([9, 5, 20]))])
    rates = []
    for optimizer in (AdamW(), Muon(), SGD()):
        lit = LitHybridLM(CONFIG, optimizer=optimizer, warmup_steps=2, learning_rate=1e-2)
        _, recorder = fit(tmp_path, same, lit=lit)
        losses = [row["train/loss"] for row in recorder.rows]
        assert losses[-1] < losses[0] - 0.01
        rates.append([row["lr"] for row in recorder.rows])
        assert [group["lr"] for group in lit.trainer.optimizers[0].param_groups] == pytest.approx(
            [1e-3] * len(lit.trainer.optimizers[0].param_groups)
        )
    assert rates[0] == rates[1] == rates[2]
