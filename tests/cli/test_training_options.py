"""Optimiser, schedule, resumed options and NaN on the command line: what is said, and the exit code."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("yaml")
pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import torch

from packmamba.cli import main as packmamba

LAST = "runs/tiny/version_0/checkpoints/last.ckpt"


def run(*arguments: str) -> int:
    return packmamba([*arguments[:1], "--config", "config.yaml", *arguments[1:]])


def rates(printed: str) -> list[float]:
    """The learning rate of each step of the run that printed this."""
    (folder,) = [line.split()[1] for line in printed.splitlines() if line.startswith("log: ")]
    with (Path(folder) / "metrics.csv").open() as file:
        return [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]


@pytest.mark.slow
def test_a_resumed_run_refuses_a_changed_rate_or_takes_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--model.schedule", "Linear", "--model.decay_steps", "6"]
    assert run("fit", *named) == 0
    assert rates(capsys.readouterr().out) == pytest.approx([1e-3, 1e-3, 0.82e-3])
    resumed = ["fit", *named, "--trainer.max_steps", "5", "--ckpt_path", LAST, "--model.learning_rate", "0.004"]
    assert run(*resumed) == 2
    said = capsys.readouterr().err
    assert "learning_rate: 0.001 in the checkpoint, 0.004 in this run" in said
    assert "--model.override_optimizer true" in said
    assert run(*resumed, "--model.override_optimizer", "true") == 0
    assert rates(capsys.readouterr().out) == pytest.approx([4 * 0.64e-3, 4 * 0.46e-3])


@pytest.mark.slow
def test_a_nan_ends_a_run_with_one_line_and_a_checkpoint_of_before(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from packmamba.training.lit import LitHybridLM

    step = LitHybridLM.training_step
    monkeypatch.setattr(
        LitHybridLM,
        "training_step",
        lambda self, batch, i: step(self, batch, i) * (float("nan") if self.trainer.global_step == 3 else 1.0),
    )
    assert run("fit", "--trainer.max_steps", "5") == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said.startswith("packmamba: error: optimiser step 3: the loss is finite, the gradient is not, in batch 3 of")
    assert f"the last good checkpoint is {LAST}" in said
    checkpoint = torch.load(LAST, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert run("validate", "--ckpt_path", LAST) == 0
    checkpoint["state_dict"]["model.backbone.norm_f.weight"] *= float("nan")
    torch.save(checkpoint, "nan.ckpt")
    assert run("validate", "--ckpt_path", "nan.ckpt") == 2
    assert "weights of nan.ckpt are NaN or infinite" in capsys.readouterr().err
