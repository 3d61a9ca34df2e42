"""Where a run logs, what it says meanwhile, and where predictions go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from packmamba import cli
from packmamba.cli.run_output import RunOutput
from packmamba.errors import UsageError


def run(*arguments: str) -> int:
    return cli.main([arguments[0], "--config", "config.yaml", *arguments[1:]])


SHOWN = ["--trainer.enable_progress_bar", "null", "--trainer.enable_model_summary", "null"]
"""What the project of the tests switches off."""


def test_without_a_terminal_training_says_in_lines_of_text_how_it_goes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", *SHOWN) == 0
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 1/3  loss 5.")
    assert "lr 1.0e-03" in lines[0]
    assert lines[0].endswith(" tokens/s")
    assert lines[1].startswith("step 2/3  validation  loss ")
    assert any(line.startswith("step 3/3  loss ") for line in lines)
    assert "attention                1           4,128" in error
    assert "FLOPs" in error
    assert "Trainable params" not in error  # Lightning's summary
    assert not [line for line in error.splitlines() if "litlogger" in line or "TPU" in line]


def test_a_progress_bar_can_be_insisted_on_and_silence_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SHOWN, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    assert run("fit", *options, "--progress", "bar") == 0
    captured = capsys.readouterr()
    assert "Epoch 0" in captured.err
    assert "Epoch 0" not in captured.out
    assert run("fit", *options, "--progress", "none") == 0
    error = capsys.readouterr().err
    assert "Epoch 0" not in error
    assert "step 1" not in error


def test_without_a_log_the_folder_holds_configuration_and_checkpoints(project: Path) -> None:
    assert run("fit", "--logger", "none", "--name", "silent") == 0
    folder = Path("runs/silent/version_0")
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "checkpoints"}
    assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_one_line_that_says_how_to_get_it(
    kind: str, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packmamba.training.loggers.importlib.util.find_spec", lambda name: None)
    assert run("fit", "--logger", kind) == 2
    assert f"--logger {kind} needs {kind}: pip install {kind}" in capsys.readouterr().err


def test_two_loggers_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--logger", "none", "--trainer.logger", "false") == 2
    assert "--logger none and --trainer.logger choose two loggers" in capsys.readouterr().err


@pytest.mark.slow
def test_predictions_go_where_output_says(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit") == 0
    checkpoint = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]
    assert run("predict", *checkpoint, "--output", "new/folder/losses.jsonl") == 0
    lines = Path("new/folder/losses.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert {"document", "nll", "perplexity"} <= set(json.loads(lines[0]))

    capsys.readouterr()
    assert run("predict", *checkpoint, "--output", "new/folder/losses.jsonl") == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    Path("new/folder/losses.jsonl").write_text("old")
    assert run("predict", *checkpoint, "--output=new/folder/losses.jsonl", "--overwrite") == 0
    assert Path("new/folder/losses.jsonl").read_text().splitlines() == lines

    capsys.readouterr()
    assert run("predict", *checkpoint, "--output", "-") == 0
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--output"], "--output needs a file"),
        (["predict", "--output", "--overwrite"], "--output needs a file"),
        (["predict", "--output", "."], "'.' is a folder; name a file in it"),
        (["predict", "--output", "docs.jsonl/losses.jsonl"], "'docs.jsonl' is a file, not a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_runs(
    arguments: list[str], message: str, project: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        RunOutput.take(arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "rest"),
    [
        (["fit", "--check", "--name", "a"], {"check": True}, ["fit", "--name", "a"]),
        (["validate", "--check"], {}, ["validate", "--check"]),
        (["predict", "--output=-", "--overwrite"], {"output": "-", "overwrite": True}, ["predict"]),
    ],
)
def test_options_of_one_command_line_are_taken_from_it(
    arguments: list[str], options: dict[str, Any], rest: list[str]
) -> None:
    assert RunOutput.take(arguments) == (RunOutput(**options), rest)
