"""Configurations, options and checkpoints made before ModelConfig and ComputeOptions were two things go on working.

tests/files/version_1 holds files of that time: a run's configuration, the one it saved, its checkpoint after 7 steps,
and the losses of 12 steps without an interruption.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("yaml")
pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import yaml

from packmamba.cli.fit import run as run_fit
from packmamba.cli.old_names import rename_arguments, rename_values
from packmamba.config import ComputeOptions, ModelConfig
from packmamba.errors import UsageError
from packmamba.lit import LitHybridLM

OLD = Path(__file__).parents[1] / "files" / "version_1"
MOVED = ("model.config.recompute", "model.config.attention.backend")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(OLD / "documents.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(config: str, *options: str) -> Any:
    fixed = ["--data.cache_dir", "cache", "--trainer.max_steps", "12"]
    return run_fit(["fit", "--config", str(OLD / config), *fixed, *options])


def losses(path: Path) -> dict[int, float]:
    """The logged training loss of each step."""
    with path.open() as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


def config_of(run: Any) -> dict[str, Any]:
    return yaml.safe_load((Path(run.trainer.log_dir) / "config.yaml").read_text())["model"]


EXPECTED = losses(OLD / "uninterrupted.csv")
RESUMED = {step: loss for step, loss in EXPECTED.items() if step >= 7}


@pytest.mark.parametrize("config", ["run.yaml", "saved_config.yaml"])
def test_an_old_configuration_trains_as_it_did(config: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(config)
    assert losses(Path(run.trainer.log_dir) / "metrics.csv") == pytest.approx(EXPECTED, rel=0, abs=1e-6)
    assert run.model.compute == ComputeOptions(recompute="block", attention_backend="sdpa")
    assert config_of(run)["compute"] == {"recompute": "block", "attention_backend": "sdpa"}
    assert "recompute" not in config_of(run)["config"]
    said = [line for line in capsys.readouterr().err.splitlines() if "is model.compute." in line]
    assert [line.split(": ")[-1].split(" is ")[0] for line in said] == list(MOVED)


OPTIONS = {
    "as it was": ([], ("block", "sdpa")),
    "new name": (["--model.compute.recompute", "none"], ("none", "sdpa")),
    "old name": (["--model.config.recompute=conv"], ("conv", "sdpa")),
    "both options, old names": (
        ["--model.config.attention.backend", "auto", "--model.config.recompute", "none"],
        ("none", "auto"),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("config", ["run.yaml", "saved_config.yaml"])
def test_an_old_checkpoint_resumes_with_the_losses_of_the_run_that_was_not_interrupted(
    config: str, name: str, project: Path
) -> None:
    options, (recompute, backend) = OPTIONS[name]
    run = fit(config, "--ckpt_path", str(OLD / "last.ckpt"), *options)
    assert run.model.compute == run.model.model.compute
    assert (run.model.compute.recompute, run.model.compute.attention_backend) == (recompute, backend)
    assert losses(Path(run.trainer.log_dir) / "metrics.csv") == pytest.approx(RESUMED, rel=0, abs=1e-6)


def test_an_old_checkpoint_is_refused_by_another_architecture(project: Path) -> None:
    other = ["--model.config.mamba1.d_state", "16", "--model.config.attention.sliding_window", "8"]
    with pytest.raises(UsageError, match="another model configuration") as error:
        fit("run.yaml", "--ckpt_path", str(OLD / "last.ckpt"), *other)
    assert "mamba1.d_state: 8 in the checkpoint, 16 in this run" in str(error.value)
    assert "attention.sliding_window: 32 in the checkpoint, 8 in this run" in str(error.value)
    assert "recompute" not in str(error.value)


def test_an_old_checkpoint_loads_in_python() -> None:
    lit = LitHybridLM.load_from_checkpoint(OLD / "last.ckpt", map_location="cpu", weights_only=True)
    assert lit.config.layer_pattern == "1-*1"
    assert torch.isfinite(lit.model.backbone.embedding.weight).all()


def test_a_symbol_of_the_configuration_reaches_the_model_the_saved_file_and_the_checkpoint(project: Path) -> None:
    symbols = {"w": {"kind": "attention", "sliding_window": 8}, "b": {"kind": "mamba1", "d_state": 16}}
    values = yaml.safe_load((OLD / "run.yaml").read_text())
    values["model"]["config"] |= {"layer_pattern": "1w*b", "symbols": symbols}
    Path("symbols.yaml").write_text(yaml.safe_dump(values))
    fixed = ["--data.cache_dir", "cache", "--trainer.max_steps", "2"]
    run = run_fit(["fit", "--config", "symbols.yaml", *fixed])
    assert [getattr(layer, "sliding_window", None) for layer in run.model.config.layers] == [None, 8, 32, None]
    assert run.model.config.layers[3].d_state == 16
    assert config_of(run)["config"]["symbols"] == symbols
    last = Path(run.trainer.log_dir) / "checkpoints" / "last.ckpt"
    stored = torch.load(last, weights_only=True)["hyper_parameters"]
    assert ModelConfig.from_dict(stored["config"]) == run.model.config
    saved = f"{run.trainer.log_dir}/config.yaml"
    run_fit(["fit", "--config", saved, "--ckpt_path", str(last), "--trainer.max_steps", "3"])
    with pytest.raises(UsageError, match=r"symbols\.w\.sliding_window: 8 in the checkpoint, 9 in this run"):
        changed = json.dumps({**symbols, "w": {"kind": "attention", "sliding_window": 9}})
        options = ["--model.config.symbols", changed, "--ckpt_path", str(last)]
        run_fit(["fit", "--config", "symbols.yaml", *fixed, *options])


ARGUMENTS = {
    "nothing": (["fit", "--trainer.max_steps", "3"], ["fit", "--trainer.max_steps", "3"]),
    "apart": (["fit", "--model.config.recompute", "none"], ["fit", "--model.compute.recompute", "none"]),
    "joined": (["fit", "--model.config.attention.backend=sdpa"], ["fit", "--model.compute.attention_backend=sdpa"]),
    "equal": (
        ["fit", "--model.config.recompute=none", "--model.compute.recompute", "none"],
        ["fit", "--model.compute.recompute=none", "--model.compute.recompute", "none"],
    ),
    "no value": (["fit", "--model.config.recompute"], ["fit", "--model.config.recompute"]),
    "missing file": (["fit", "--config", "nothing.yaml"], ["fit", "--config", "nothing.yaml"]),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_old_options_of_the_command_line_get_their_new_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, renamed = ARGUMENTS[name]
    assert rename_arguments(arguments) == renamed
    said = capsys.readouterr().err
    assert said.count("\n") == (arguments != renamed)


@pytest.mark.parametrize("form", ["--config={}", "-c {}", "--config {}"])
def test_a_file_with_old_names_is_passed_on_by_its_content(form: str) -> None:
    arguments = rename_arguments(["fit", *form.format(OLD / "run.yaml").split()])
    content = json.loads(arguments[-1].removeprefix("--config="))
    assert content["model"]["compute"] == {"recompute": "block", "attention_backend": "sdpa"}
    assert content["model"]["config"]["attention"] == {"num_heads": 2, "sliding_window": 32}
    assert content["data"] == yaml.safe_load((OLD / "run.yaml").read_text())["data"]


@pytest.mark.parametrize("content", ["trainer: {max_steps: 3}\n", "- a list\n", "model: {config: {d_model: 3}}\n", "{"])
def test_a_file_without_old_names_stays_a_path(content: str, tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(content)
    assert rename_arguments(["fit", "--config", str(path)]) == ["fit", "--config", str(path)]


def test_two_values_for_one_option_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"the command line gives model.compute.recompute twice: 'conv', and 'none' by"
    ):
        rename_arguments(["--model.config.recompute=none", "--model.compute.recompute", "conv"])
    values = {"model": {"config": {"recompute": "none"}, "compute": {"recompute": "conv"}}}
    with pytest.raises(UsageError, match=r"run.yaml gives model.compute.recompute twice"):
        rename_values(values, "run.yaml")
    values["model"]["compute"]["recompute"] = "none"
    assert rename_values(values, "run.yaml") == {"model": {"config": {}, "compute": {"recompute": "none"}}}
