"""Every file in configs/ parses, and describes the model it says it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")
pytest.importorskip("lightning")

import torch
import yaml

from packmamba import cli
from packmamba.config import PRESETS, ModelConfig
from packmamba.model import HybridLM

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def parsed(path: Path, capsys: pytest.CaptureFixture[str], command: str = "fit") -> dict[str, Any]:
    assert cli.main([command, "--config", str(path), "--print_config"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"quickstart", "mamba-130m", "mamba-1.4b", "hybrid-130m"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_parses_and_its_model_can_be_built(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(path, capsys)
    assert config["name"] == path.stem
    with torch.device("meta"):
        model = HybridLM(ModelConfig.from_dict(config["model"]["config"]))
    assert model.num_parameters() > 1e5


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_config_serves_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(CONFIGS[0], capsys, command)["name"] == CONFIGS[0].stem


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem in PRESETS], ids=lambda path: path.stem)
def test_config_writes_out_its_preset(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(path, capsys)
    assert ModelConfig.from_dict(config["model"]["config"]) == PRESETS[path.stem]


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem in PRESETS], ids=lambda path: path.stem)
def test_a_step_has_half_a_million_tokens(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(path, capsys)
    assert config["data"]["capacity"] * config["trainer"]["accumulate_grad_batches"] == 2**19
    assert config["trainer"]["gradient_clip_val"] == 1.0
