"""What the command line says when the input is wrong, and that a bug keeps its traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from packmamba import cli
from packmamba.errors import CannotRunError, MissingFileError, MissingPackageError, UsageError, UsageTypeError
from tests.option_table import refusals

INPUT_ERRORS = [UsageError, UsageTypeError, MissingFileError, MissingPackageError, CannotRunError]


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


BAD_INPUT = """
    unknown layer symbol | --model.config.layer_pattern '1*x' \
    | error: layer_pattern '1*x': unknown symbol 'x' at index 2; available: '1' (mamba1), '*' (attention), '-' (mlp)
    reserved layer symbol | --model.config.layer_pattern 12 | symbol '2' at index 1 stands for mamba2
    empty pattern | --model.config.layer_pattern '' | layer_pattern is empty
    heads not divisible | --model.config.attention.num_heads 5 \
    | d_model (32) is not divisible by attention.num_heads (5)
    key/value heads not divisible | --model.config.attention.num_heads 4 --model.config.attention.num_kv_heads 3 \
    | attention.num_heads (4) is not divisible by attention.num_kv_heads (3)
    capacity below 1 | --data.capacity 0 | capacity must be at least 1, got 0
    missing file | --data.source.init_args.paths '[nothing.jsonl]' | no file matches 'nothing.jsonl'
    missing column | --data.source.init_args.column body | has no column 'body'; its columns: text
    missing configuration file | --config nothing.yaml | File does not exist: 'nothing.yaml'
    missing checkpoint | --ckpt_path nothing.ckpt | ckpt_path 'nothing.ckpt' does not exist
    vocabulary too small | --model.config.vocab_size 200 \
    | the data's vocabulary has 258 tokens, but the model's vocab_size is 200; set model.config.vocab_size
    no last step | --trainer.max_steps -1 | give trainer.max_steps or trainer.max_epochs
    learning rate of zero | --model.learning_rate 0 | learning_rate must be more than 0, got 0.0
    not a number | --model.config.d_model abc | "model.config.d_model": Expected a <class 'int'>
    unknown option | --model.depth 3 | --model.depth
    name of no configuration | --config quikstart | ; did you mean 'quickstart'?
    file that is no checkpoint | --ckpt_path config.yaml | ckpt_path 'config.yaml' is not a checkpoint
    file that is no text | --config binary.yaml | cannot read 'binary.yaml': 'utf-8' codec
    file that is no YAML | --config broken.yaml | broken.yaml
    unknown accelerator | --trainer.accelerator tpux | tpux
    options that contradict each other | --trainer.fast_dev_run -1 \
    | error: trainer: fast_dev_run=-1 is not a valid configuration
    logger of a package that is not installed | --trainer.logger lightning.pytorch.loggers.WandbLogger | wandb
    no file to validate on | --data.val_source '{class_path: packmamba.data.sources.Files, init_args: {paths: []}}' \
    | error: Files.paths is empty; name at least one file
    folder of logs that is a file | --trainer.default_root_dir docs.jsonl \
    | --trainer.default_root_dir: 'docs.jsonl' File exists
    folder of the cache that is a file | --data.cache_dir docs.jsonl | --data.cache_dir: 'docs.jsonl' File exists
"""


def assert_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("fit", "--config", "config.yaml", *options) == 2
    error = capsys.readouterr().err
    assert "packmamba: error: " in error
    assert message in error
    assert "Traceback" not in error
    assert len(error.splitlines()) < 12


class TestBadInput:
    @pytest.mark.parametrize(("options", "message"), refusals(BAD_INPUT))
    def test_is_a_short_message_and_exit_code_2(
        self, options: list[str], message: str, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert_refused(options, message, capsys)

    def test_a_checkpoint_of_another_configuration(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fit", "--config", "config.yaml", "--trainer.max_steps", "1") == 0
        options = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--model.config.d_model", "64"]
        message = "another model configuration: d_model: 32 in the checkpoint, 64 in this run"
        assert_refused(options, message, capsys)

    def test_without_a_model_the_configurations_are_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fit", "--trainer.max_steps", "3") == 2
        assert "no model is given: name a configuration, --config FILE, or one of hyb" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("1111", 'Got value: 1111; a pattern of digits is a number in YAML: quote it, layer_pattern: "1111"'),
            ("*1*1", "a value that begins with * is an alias in YAML: quote it"),
        ],
    )
    def test_an_unquoted_layer_pattern_says_to_quote_it(
        self, pattern: str, message: str, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = Path("config.yaml").read_text().replace("layer_pattern: 1*-", f"layer_pattern: {pattern}")
        assert pattern in text
        Path("unquoted.yaml").write_text(text)
        assert run("fit", "--config", "unquoted.yaml") == 2
        assert message in capsys.readouterr().err

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
        with pytest.raises(ValueError, match="capacity must be at least 1"):
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
