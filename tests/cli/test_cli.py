"""The command line: what it runs, what it leaves behind, and what it says when the input is wrong."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")
pytest.importorskip("lightning")

import torch
import yaml

from packmamba import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small corpus and a configuration that trains a tiny model on it; the working directory."""
    monkeypatch.chdir(tmp_path)
    texts = [f"document {i} " + "abc " * (i % 7) for i in range(40)]
    Path("docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = {
        "name": "tiny",
        "model": {
            "config": {"layer_pattern": "1*-", "d_model": 32, "vocab_size": 258, "attention": {"num_heads": 2}},
            "warmup_steps": 1,
        },
        "data": {
            "source": {"class_path": "packmamba.data.sources.Files", "init_args": {"paths": ["docs.jsonl"]}},
            "capacity": 64,
            "val_fraction": 0.2,
            "cache_dir": str(tmp_path / "cache"),
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 3,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": 2,
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture(autouse=True)
def no_errors_of_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's loggers hold on to the stderr of the test that imported it, which is closed."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def logged(folder: Path) -> dict[str, list[float]]:
    """The numbers of a run's log by column, empty cells left out."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


class TestTopLevel:
    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
    def test_help_names_every_command_with_one_line(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(*arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        for name, (_, help_line) in cli.COMMANDS.items():
            assert any(line.split() == [name, *help_line.split()] for line in lines), name

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--version") == 0
        assert capsys.readouterr().out.startswith("packmamba 0.")

    def test_an_unknown_command_lists_what_exists(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fti") == 2
        error = capsys.readouterr().err
        assert "unknown command 'fti'; did you mean 'fit'?" in error
        assert all(name in error for name in cli.COMMANDS)

    def test_every_command_has_a_module_with_main(self) -> None:
        for module, _ in cli.COMMANDS.values():
            path = ROOT / Path(*module.split(".")).with_suffix(".py")
            assert path.exists(), module
            assert "def main(argv" in path.read_text(), module

    def test_other_commands_get_their_arguments_and_give_the_exit_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Any] = []

        class Module:
            __name__ = "packmamba.cli.info"

            @staticmethod
            def main(argv: list[str]) -> int:
                seen.append(argv)
                return 7

        monkeypatch.setattr(cli.importlib, "import_module", lambda name: Module)
        assert run("info", "--json") == 7
        assert seen == [["--json"]]

    def test_it_runs_as_a_process(self) -> None:
        process = subprocess.run([sys.executable, "-m", "packmamba.cli", "fti"], capture_output=True, text=True)
        assert process.returncode == 2
        assert process.stderr.startswith("packmamba: error: unknown command 'fti'")


class TestRuns:
    def test_fit_then_validate_test_predict_and_resume(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fit", "--config", "config.yaml") == 0
        out = capsys.readouterr().out
        first = Path("runs/tiny/version_0")
        for name in ("best", "last"):
            path = first / "checkpoints" / f"{name}.ckpt"
            assert f"checkpoint: {path}\n" in out
            assert torch.load(path, weights_only=True)["global_step"] > 0
        assert f"log: {first}" in out
        log = logged(first)
        assert {
            name: len(log[name]) for name in ("train/loss", "lr", "grad_norm", "tokens_per_second")
        } == dict.fromkeys(("train/loss", "lr", "grad_norm", "tokens_per_second"), 3)
        assert {
            "padding_fraction",
            "documents_per_step",
            "val/loss",
            "val/perplexity",
            "val/document_perplexity",
        } <= set(log)

        # What was saved beside the log starts the same run again.
        saved = yaml.safe_load((first / "config.yaml").read_text())
        assert saved["trainer"]["max_steps"] == 3
        assert saved["trainer"]["gradient_clip_val"] == 1.0

        checkpoint = str(first / "checkpoints" / "last.ckpt")
        for command, metric in (("validate", "val/document_perplexity"), ("test", "test/document_perplexity")):
            assert run(command, "--config", "config.yaml", "--ckpt_path", checkpoint) == 0
            assert metric in capsys.readouterr().out

        assert run("predict", "--config", "config.yaml", "--ckpt_path", checkpoint) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("predictions: ")]
        records = [json.loads(text) for text in Path(line.split()[1]).read_text().splitlines()]
        assert len(records) == 8
        assert all(record["nll"] > 0 and record["targets"] == record["tokens"] - 1 for record in records)

        more = ["--ckpt_path", checkpoint, "--trainer.max_steps", "5"]
        assert run("fit", "--config", str(first / "config.yaml"), *more) == 0
        (log_folder,) = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("log: ")]
        assert len(logged(Path(log_folder))["train/loss"]) == 2

    def test_a_resumed_run_is_the_run_that_was_not_interrupted(self, project: Path) -> None:
        steady = ["--model.decay_steps", "6", "--trainer.limit_val_batches", "0"]
        assert run("fit", "--config", "config.yaml", "--name", "straight", *steady, "--trainer.max_steps", "6") == 0
        assert run("fit", "--config", "config.yaml", "--name", "halves", *steady, "--trainer.max_steps", "3") == 0
        last = "runs/halves/version_0/checkpoints/last.ckpt"
        more = ["--trainer.max_steps", "6", "--ckpt_path", last]
        assert run("fit", "--config", "config.yaml", "--name", "halves", *steady, *more) == 0
        states = [
            torch.load(path, weights_only=True)["state_dict"]
            for path in ("runs/straight/version_0/checkpoints/last.ckpt", "runs/halves/version_1/checkpoints/last.ckpt")
        ]
        for name, expected in states[0].items():
            assert torch.equal(expected, states[1][name]), name

    def test_two_processes_train_and_validate_as_one_does(self, project: Path) -> None:
        # 14 packs an epoch: three steps of 4 packs, and a last one of 2.
        epoch = [
            "--model.config.layer_pattern",
            "*-",
            "--trainer.max_steps",
            "4",
            "--trainer.val_check_interval",
            "1.0",
        ]
        command = ["fit", "--config", "config.yaml", *epoch]
        assert run(*command, "--name", "one", "--trainer.accumulate_grad_batches", "4") == 0
        ranks = ["--trainer.accumulate_grad_batches", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
        process = subprocess.run(
            [sys.executable, "-m", "packmamba.cli", *command, "--name", "two", *ranks],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.returncode == 0, process.stderr
        one, two = (logged(Path("runs") / name / "version_0") for name in ("one", "two"))
        assert len(one["train/loss"]) == 4
        assert one["documents_per_step"][-1] < one["documents_per_step"][0]
        assert len(one["val/loss"]) == 1
        for name in ("train/loss", "val/loss", "val/document_perplexity", "val/documents"):
            assert two[name] == pytest.approx(one[name], rel=1e-6), name
        for name in ("tokens_per_step", "documents_per_step", "padding_fraction", "grad_norm", "lr"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-3), name

    def test_without_checkpoints_progress_bar_or_logger(self, project: Path) -> None:
        off = ["--trainer.enable_checkpointing", "false", "--trainer.logger", "false"]
        assert run("fit", "--config", "config.yaml", *off) == 0
        assert not Path("runs").exists()

    def test_the_data_module_learns_the_cost_of_attention_from_the_model(self, project: Path) -> None:
        from packmamba.cli.fit import run as run_trainer
        from packmamba.config import ModelConfig
        from packmamba.model import attention_cost

        options = ["--data.balance", "flops", "--model.config.attention.sliding_window", "5"]
        ran = run_trainer(["fit", "--config", "config.yaml", "--trainer.max_steps", "1", *options])
        model = ModelConfig.from_dict(ran.model.hparams["config"])
        assert "*" in model.layer_pattern
        (cost,) = ran.datamodule.options.order.attention_costs
        assert cost.cost == attention_cost(model) > 0
        assert cost.window == 5

    def test_print_config_shows_every_value(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fit", "--config", "config.yaml", "--print_config") == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["model"]["config"]["mamba1"]["d_state"] == 16
        assert shown["data"]["strategy"] == "best_fit_decreasing"

    def test_help_of_fit_explains_the_fields_of_the_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fit", "--help") == 0
        text = " ".join(capsys.readouterr().out.split())
        for words in ("N, the size of each channel's state.", "Tokens a pack can hold.", "AdamW's peak learning rate."):
            assert words in text, words


def other_checkpoint(project: Path) -> list[str]:
    assert run("fit", "--config", "config.yaml", "--trainer.max_steps", "1") == 0
    return ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--model.config.d_model", "64"]


def wrong_ids(project: Path) -> list[str]:
    return ["--model.config.vocab_size", "200"]


BAD_INPUT = {
    "unknown layer symbol": (
        ["--model.config.layer_pattern", "1*x"],
        "layer_pattern '1*x': unknown symbol 'x' at index 2; available: '1' (mamba1), '*' (attention), '-' (mlp)",
    ),
    "reserved layer symbol": (["--model.config.layer_pattern", "12"], "symbol '2' at index 1 stands for mamba2"),
    "empty pattern": (["--model.config.layer_pattern", ""], "layer_pattern is empty"),
    "heads not divisible": (
        ["--model.config.attention.num_heads", "5"],
        "d_model (32) is not divisible by attention.num_heads (5)",
    ),
    "key/value heads not divisible": (
        ["--model.config.attention.num_heads", "4", "--model.config.attention.num_kv_heads", "3"],
        "attention.num_heads (4) is not divisible by attention.num_kv_heads (3)",
    ),
    "capacity below 1": (["--data.capacity", "0"], "capacity must be at least 1, got 0"),
    "missing file": (["--data.source.init_args.paths", "[nothing.jsonl]"], "no file matches 'nothing.jsonl'"),
    "missing column": (["--data.source.init_args.column", "body"], "has no column 'body'; its columns: text"),
    "missing configuration file": (["--config", "nothing.yaml"], "File does not exist: "),
    "missing checkpoint": (["--ckpt_path", "nothing.ckpt"], "ckpt_path 'nothing.ckpt' does not exist"),
    "vocabulary too small": (
        wrong_ids,
        "the data's vocabulary has 258 tokens, but the model's vocab_size is 200; set model.config.vocab_size",
    ),
    "checkpoint of another configuration": (
        other_checkpoint,
        "another model configuration: d_model: 32 in the checkpoint, 64 in this run",
    ),
    "no last step": (["--trainer.max_steps", "-1"], "give trainer.max_steps or trainer.max_epochs"),
    "learning rate of zero": (["--model.learning_rate", "0"], "learning_rate must be more than 0, got 0.0"),
    "not a number": (["--model.config.d_model", "abc"], "\"model.config.d_model\": Expected a <class 'int'>"),
    "unknown option": (["--model.depth", "3"], "--model.depth"),
}


class TestBadInput:
    @pytest.mark.parametrize("case", BAD_INPUT)
    def test_is_a_short_message_and_exit_code_2(
        self, case: str, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments, message = BAD_INPUT[case]
        options = arguments if isinstance(arguments, list) else arguments(project)
        capsys.readouterr()
        assert run("fit", "--config", "config.yaml", *options) == 2
        error = capsys.readouterr().err
        assert "packmamba: error: " in error
        assert message in error
        assert "Traceback" not in error
        assert len(error.splitlines()) < 12

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

    def test_only_a_raise_statement_of_packmamba_is_an_input_error(self) -> None:
        def error_of(code: str, module: str) -> BaseException:
            try:
                exec(compile(code, "somewhere.py", "exec"), {"__name__": module})
            except Exception as error:
                return error
            raise AssertionError(code)

        assert cli.is_input_error(error_of("raise ValueError('x')", "packmamba.data.sources"))
        assert cli.is_input_error(
            error_of("try:\n 1/0\nexcept Exception as e:\n raise ValueError from e", "packmamba.training.lit")
        )
        assert not cli.is_input_error(error_of("int('x')", "packmamba.data.sources"))
        assert not cli.is_input_error(error_of("a, b = [1]", "packmamba.training.lit"))
        assert not cli.is_input_error(error_of("raise ValueError('x')", "packmamba_kernels.selective_scan.op"))
        assert not cli.is_input_error(error_of("raise ValueError('x')", "torch.nn"))
        assert not cli.is_input_error(ValueError("never raised"))
