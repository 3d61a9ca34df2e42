"""`packmamba quickstart`: it trains, validates, compares, and says where everything is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from packmamba import cli

SMALL = ["--documents", "4", "--repeats", "1", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]


def test_it_leaves_a_checkpoint_a_log_and_two_pictures(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quickstart", "--config", "config.yaml", *SMALL]) == 0
    folder = Path("runs/tiny/version_0")
    out = capsys.readouterr().out
    for name in ("checkpoints/last.ckpt", "metrics.csv", "loss.png", "throughput.png"):
        assert f" {folder / name}\n" in out
        assert (folder / name).is_file()
    results = json.loads((folder / "throughput.json").read_text())["results"]
    assert [result["mode"] for result in results] == ["packed", "padded", "single"]
    assert "nats a token" in out
    assert "x as fast" in out


def test_without_matplotlib_it_does_the_same_and_says_how_to_get_pictures(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["quickstart", "--config", "config.yaml", *SMALL]) == 0
    folder = Path("runs/tiny/version_0")
    out = capsys.readouterr().out
    assert "pip install 'packmamba[plots]'" in out
    assert f"comparison  {folder / 'throughput.json'}\n" in out
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert not list(folder.glob("*.png"))


def test_a_configuration_that_does_not_exist_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quickstart", "--config", "quickstrat"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


def test_the_log_it_draws_cannot_be_another(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--trainer.max_steps", "1"]
    assert cli.main(["quickstart", "--config", "config.yaml", *options]) == 2
    assert "leave trainer.logger unset" in capsys.readouterr().err
