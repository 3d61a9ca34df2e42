"""Runs that are stopped, killed, started together and resumed by their command line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

import torch

from packmamba import cli
from packmamba.training.checkpoint_files import is_whole
from packmamba.training.lit import LitHybridLM
from tests.data.resume.runs import QUIET
from tests.support import assert_identical
from tests.training.rank_runs import SERVER

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::UserWarning")]
FIT = ["fit", "--config", "config.yaml", "--model.decay_steps", "6", "--trainer.max_steps", "6"]


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(one: str | Path, other: str | Path) -> None:
    for name, expected in weights(one).items():
        assert_identical(name, expected, weights(other)[name])


def checkpoint(name: str, version: int) -> str:
    return f"runs/{name}/version_{version}/checkpoints/last.ckpt"


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Has training do something in its first forward after so many optimiser steps, once."""
    forward, done = LitHybridLM.training_step, []

    def training_step(self, batch, batch_idx):
        if self.global_step == step and not done:
            done.append(step)
            act()
        return forward(self, batch, batch_idx)

    monkeypatch.setattr(LitHybridLM, "training_step", training_step)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_saves_and_says_how_to_go_on(project: Path, monkeypatch, capsys, signum: int, code: int) -> None:
    assert cli.main([*FIT, "--name", "straight"]) == 0
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signum))
        assert cli.main([*FIT, "--name", "halves"]) == code
    stderr = capsys.readouterr().err
    assert f"after optimiser step 4, saved: {checkpoint('halves', 0)}" in stderr.replace("which is ", "")
    assert "Traceback" not in stderr
    (command,) = re.findall("go on with: packmamba (.*)", stderr)
    assert cli.main(shlex.split(command)) == 0
    assert_same_weights(checkpoint("straight", 0), checkpoint("halves", 1))


def test_an_exception_saves_and_keeps_its_traceback(project: Path, monkeypatch, capsys) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    at_step(monkeypatch, 3, fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(FIT)
    stderr = capsys.readouterr().err
    assert "stopped by ZeroDivisionError after optimiser step 3, saved: " in stderr
    assert "go on with: packmamba fit --config config.yaml --model.decay_steps 6" in stderr


def test_resume_auto_starts_a_run_and_restarts_it(project: Path, monkeypatch, capsys) -> None:
    again = [*FIT, "--resume", "auto"]
    assert cli.main([*FIT, "--name", "straight"]) == 0
    assert cli.main([*again, "--name", "x", "--trainer.max_steps", "2"]) == 0
    assert "--resume auto: there is no checkpoint in runs/x yet; training begins at the first step" in said(capsys)
    assert cli.main([*again, "--name", "x", "--trainer.max_steps", "4"]) == 0
    assert f"--resume auto: goes on from {checkpoint('x', 0)}" in said(capsys)
    os.truncate(checkpoint("x", 1), 0)
    assert cli.main([*again, "--name", "x"]) == 0
    output = said(capsys)
    assert f"--resume auto: not from {checkpoint('x', 1)}: it is empty" in output
    assert "--resume auto: goes on from runs/x/version_1/checkpoints/" in output
    assert_same_weights(checkpoint("straight", 0), checkpoint("x", 2))
    assert cli.main([*again, "--name", "x"]) == 0, "a run that is done is no error"
    assert "goes on from runs/x/version_2/checkpoints/last.ckpt" in said(capsys)
    assert cli.main([*again, "--ckpt_path", checkpoint("x", 2)]) == 2
    assert f"leave out --ckpt_path {checkpoint('x', 2)}, or --resume" in capsys.readouterr().err


def said(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out


def test_a_damaged_checkpoint_is_one_line_that_names_the_newest_whole_one(project: Path, capsys) -> None:
    assert cli.main(FIT) == 0
    last = checkpoint("tiny", 0)
    data = bytearray(Path(last).read_bytes())
    data[len(data) // 2] ^= 1
    Path(last).write_bytes(data)
    for command in ("fit", "validate"):
        assert cli.main([command, *FIT[1:3], "--ckpt_path", last]) == 2
        error = capsys.readouterr().err
        assert re.search(f"the checkpoint '{last}' cannot be used: its contents are damaged.*newest whole", error)
    assert not Path("runs/tiny/version_1").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ckpt_path", "last"], "ckpt_path 'last' is no file: give a checkpoint's path (runs/tiny has none yet)"),
        (["--ckpt_path", "best"], "let fit --resume auto find it"),
        (["--resume", "auto", "--trainer.logger", "false"], "--resume auto looks into runs/NAME"),
        (["--resume", "yes"], "resume"),
        (["--name", "../../x"], "--name '../../x' does not name a folder below the folder of all runs"),
        (["--name", ""], "--name '' does not name a folder"),
        (["--last_checkpoint.keep", "0"], "last_checkpoint.keep must be 1 or more, got 0"),
        (["--last_checkpoint.every_minutes", "-1"], "last_checkpoint.every_minutes must be more than 0, or null"),
    ],
)
def test_options_that_cannot_be_used_are_refused(project: Path, capsys, options: list[str], message: str) -> None:
    assert cli.main([*FIT, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 3
    assert not list(Path("runs").glob("*/version_*"))


def run_until_killed_in_a_save(folder: Path, save: int) -> None:
    """Trains by the command line, and is killed in the middle of a save."""
    os.chdir(folder)
    torch.set_num_threads(1)
    whole, saves = torch.save, []

    def save_half(obj: Any, file: Any, **options: Any) -> None:
        saves.append(obj)
        if len(saves) < save:
            whole(obj, file, **options)
            return
        buffer = io.BytesIO()
        whole(obj, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half
    cli.main([*FIT, "--name", "killed", "--resume", "auto", "--last_checkpoint.every_n_train_steps", "1"])


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_save_ends_as_one_that_is_not(project: Path) -> None:
    every = ["--last_checkpoint.every_n_train_steps", "1"]
    assert cli.main([*FIT, *every, "--name", "straight"]) == 0
    for save in (2, 2, 3):
        process = SERVER.Process(target=run_until_killed_in_a_save, args=(project, save))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for path in Path("runs/killed").glob("*/checkpoints/*.ckpt"):
            assert is_whole(path)
    assert len(list(Path("runs/killed").glob("*/checkpoints/.*.partial"))) == 1, "the next run removes them"
    assert cli.main([*FIT, *every, "--name", "killed", "--resume", "auto"]) == 0
    assert not list(Path("runs/killed").glob("*/checkpoints/.*.partial"))
    assert_same_weights(checkpoint("straight", 0), checkpoint("killed", 3))


def start(*options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "packmamba", *FIT[:3], "--trainer.max_steps", "100000", *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(pattern: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not list(Path().glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def alive_in_group(group: int) -> list[str]:
    """The processes of a group, without those that have ended and whom nobody has asked how."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = path.read_text().rpartition(") ")[2].split()[:3]
            found += [path.parent.name] if int(of) == group and state != "Z" else []
    return found


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_or_to_every_process_stops_all_and_saves(project: Path) -> None:
    """As `kill` and a scheduler send it, the loader's workers included."""
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.num_workers", "1"]
    for name, options, kill in (("ranks", ranks, os.kill), ("workers", ["--data.num_workers", "2"], os.killpg)):
        process = start("--name", name, *options)
        wait_for(f"runs/{name}/version_0/checkpoints/last-1.ckpt", process)
        kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 143, output
        assert "Traceback" not in output
        assert "stopped by SIGTERM after optimiser step" in output
        assert f"--ckpt_path {checkpoint(name, 0)}" in output
        assert is_whole(checkpoint(name, 0))
        for _ in range(100):
            if not (left := alive_in_group(process.pid)):
                break
            time.sleep(0.1)
        assert not left, "ranks or workers go on"
