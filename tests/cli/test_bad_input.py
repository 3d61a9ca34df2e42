"""What the command line says when the input is wrong, and that a bug keeps its traceback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from packmamba import cli
from packmamba.errors import CannotRunError, MissingFileError, MissingPackageError, UsageError, UsageTypeError
from tests.cli.bad_inputs import CHECKPOINTS, FIT_DATA, FIT_FILES, FIT_MODEL, FIT_TRAINER, OTHERS
from tests.cli.conftest import make_project

INPUT_ERRORS = [UsageError, UsageTypeError, MissingFileError, MissingPackageError, CannotRunError]


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


CONFUSING = (
    "Traceback",
    "<class ",
    "typing.",
    "jsonargparse",
    "Union",
    "Errors:",
    "compute_fn",
    "class_path",
    "Parser key",
)
"""Words of Python and of a parser, which no message has."""

LONGEST = 340
"""Characters of a message; those that list everything that would do are the longest."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, a checkpoint of it, and files that are no configuration, no checkpoint, or damaged ones."""
    yaml = pytest.importorskip("yaml")
    folder = tmp_path_factory.mktemp("project")
    config = make_project(folder)
    (folder / "folder").mkdir()
    for name, text in {
        "broken.yaml": "model: [1,\n  trainer: }",
        "tab.yaml": "model:\n\tconfig: 3\n",
        "alias.yaml": "layer_pattern: *1*1\n",
        "empty.yaml": "",
        "list.yaml": "- 1\n- 2\n",
        "unquoted.yaml": yaml.safe_dump(config).replace("layer_pattern: 1*-", "layer_pattern: 1111"),
        "template.jinja": "{{ messages }}",
        "single.jsonl": '{"text": "a"}\n' * 10,
        "typo.yaml": yaml.safe_dump(config | {"data": config["data"] | {"capasity": 64}}),
        "typo_top.yaml": yaml.safe_dump(config | {"modle": 3}),
        "typo_field.yaml": yaml.safe_dump(config | {"model": {"config": config["model"]["config"] | {"d_modle": 32}}}),
        "empty.ckpt": "",
    }.items():
        (folder / name).write_text(text)
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "bad.npy").write_bytes(b"1 2 3")
    np.save(folder / "good.npy", np.ones((40, 3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("fit", "--config", "config.yaml", "--trainer.max_steps", "1") == 0
    checkpoint = folder / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    whole = checkpoint.read_bytes()
    (folder / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (folder / "flipped.ckpt").write_bytes(whole[: middle - 2000] + bytes(2000) + whole[middle:])
    torch.save({"a": 1}, folder / "foreign.ckpt")
    torch.save({"pytorch-lightning_version": "2.6.0", "hyper_parameters": {}, "state_dict": {}}, folder / "other.ckpt")
    (folder / "good.ckpt").write_bytes(whole)
    return folder


def rows(table: str, before: Sequence[str] = (), slow: bool = False) -> list[Any]:
    """Parameters (arguments, words) of a table of bad inputs. before: the arguments that each begins with. slow:
    whether they are many that take a second each."""
    marks = [pytest.mark.slow] if slow else []
    cells = [line.rsplit(" | ", 1) for line in table.strip().splitlines()]
    return [
        pytest.param(
            [*before, *shlex.split(line)], [part.strip() for part in words.split(" & ")], id=line.strip(), marks=marks
        )
        for line, words in cells
    ]


FIT = ("fit", "--config", "config.yaml")
BAD_INPUT = [
    *rows(FIT_MODEL, FIT),
    *rows(FIT_TRAINER, FIT, slow=True),
    *rows(FIT_DATA, FIT, slow=True),
    *(row for table in (FIT_FILES, CHECKPOINTS, OTHERS) for row in rows(table)),
]


class TestBadInput:
    def test_there_are_rows_for_every_command(self) -> None:
        commands = [row.values[0][0] for row in BAD_INPUT]
        assert len(commands) >= 120
        assert set(cli.COMMANDS) <= set(commands)

    @pytest.mark.parametrize(("arguments", "words"), BAD_INPUT)
    def test_is_one_line_that_names_what_is_wrong_and_what_would_do(
        self,
        arguments: list[str],
        words: list[str],
        files: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(files)
        capsys.readouterr()
        assert run(*arguments) == 2
        out, error = capsys.readouterr()
        assert out == ""
        # Where a file is read for the first time, `datasets` draws a bar.
        message, *hint = [line for line in error.splitlines() if line and "Generating" not in line]
        assert message.startswith("packmamba: error: ")
        assert hint in ([], ["(--traceback shows where this was found)"])
        assert not [word for word in words if word not in message], message
        assert not [word for word in CONFUSING if word in error], error
        assert len(message) <= LONGEST, message

    @pytest.mark.slow
    def test_a_hub_dataset_without_a_network_names_the_offline_default(self, project: Path) -> None:
        source = "{class_path: packmamba.data.sources.HubDataset, init_args: {name: nobody/nothing}}"
        process = subprocess.run(
            [sys.executable, "-m", "packmamba.cli", "fit", "--config", "config.yaml", "--data.source", source],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(project / "hf")},
        )
        assert process.returncode == 2
        assert "cannot reach the hub for dataset 'nobody/nothing'" in process.stderr
        assert "PythonDocs" in process.stderr
        assert "Traceback" not in process.stderr

    def test_a_token_id_the_model_has_no_row_for(
        self, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from packmamba.data.text.tokenizers import ByteTokenizer

        # A tokenizer that gives more ids than it says it has.
        monkeypatch.setattr(ByteTokenizer, "vocab_size", 200)
        assert run("fit", "--config", "config.yaml", "--model.config.vocab_size", "200") == 2
        error = capsys.readouterr().err
        assert "packmamba: error: the tokenizer gave token id 257" in error
        assert "Traceback" not in error


def command_that_raises(error: Exception) -> Any:
    """What `importlib.import_module` would give for a command whose `main` raises."""

    def main(argv: list[str]) -> int:
        raise error

    return lambda name: SimpleNamespace(main=main, __name__=name)


class TestBugsStayLoud:
    @pytest.mark.parametrize("switch", ["--traceback", "PACKMAMBA_TRACEBACK"])
    def test_a_switch_shows_the_traceback(self, switch: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["fit", "--config", "config.yaml", "--data.capacity", "0"]
        if switch.startswith("--"):
            arguments.append(switch)
        else:
            monkeypatch.setenv(switch, "1")
        with pytest.raises(ValueError, match="capacity must be from 2 tokens"):
            run(*arguments)

    def test_an_error_nobody_raised_on_purpose_is_not_shortened(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from packmamba.training import lit

        def broken(*args: Any, **kwargs: Any) -> None:
            a, b = [1]  # noqa: F841  (a ValueError, but no `raise`)

        broken.__globals__  # noqa: B018
        monkeypatch.setattr(lit, "parameter_groups", broken)
        with pytest.raises(ValueError, match="not enough values"):
            run("fit", "--config", "config.yaml")

    @pytest.mark.parametrize(
        "kind", [UsageError, UsageTypeError, MissingFileError, MissingPackageError, CannotRunError]
    )
    def test_a_usage_error_is_an_input_error(
        self, kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(cli.importlib, "import_module", command_that_raises(kind("no such thing")))
        assert run("info") == 2
        assert capsys.readouterr().err.startswith("packmamba: error: no such thing\n")

    @pytest.mark.parametrize("kind", [ValueError, TypeError, OSError, ImportError, RuntimeError, KeyError])
    def test_any_other_error_is_a_bug(self, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cli.importlib, "import_module", command_that_raises(kind("broken")))
        with pytest.raises(kind, match="broken"):
            run("info")
