"""The command line: what it runs, and what it leaves behind."""

from __future__ import annotations

import csv
import json
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
            path = ROOT / "packmamba" / "cli" / f"{module}.py"
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

    def test_bench_says_where_the_benchmarks_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("bench", "--device", "cpu") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "run `python -m benchmarks` in a checkout of the repository" in line

    @pytest.mark.parametrize("module", ["packmamba", "packmamba.cli"])
    def test_it_runs_as_a_process(self, module: str) -> None:
        process = subprocess.run([sys.executable, "-m", module, "fti"], capture_output=True, text=True)
        assert process.returncode == 2
        assert process.stderr.startswith("packmamba: error: unknown command 'fti'")


class TestRuns:
    @pytest.mark.slow
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

    @pytest.mark.slow
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
        from packmamba.model import attention_costs

        options = ["--data.balance", "flops", "--model.config.attention.sliding_window", "5"]
        ran = run_trainer(["fit", "--config", "config.yaml", "--trainer.max_steps", "1", *options])
        model = ModelConfig.from_dict(ran.model.hparams["config"])
        assert "*" in model.layer_pattern
        (cost,) = ran.datamodule.options.order.attention_costs
        assert (cost,) == attention_costs(model)
        assert cost.cost > 0
        assert cost.window == 5

    def test_print_config_shows_every_value(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fit", "--config", "config.yaml", "--print_config") == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["model"]["config"]["mamba1"]["d_state"] == 16
        assert shown["data"]["strategy"] == "best_fit_decreasing"

    def test_help_of_fit_explains_the_fields_of_the_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fit", "--help") == 0
        text = " ".join(capsys.readouterr().out.split())
        for words in ("N, the size of each channel's state.", "Tokens a pack can hold.", "The peak learning rate."):
            assert words in text, words


class TestEvaluation:
    """What an evaluation says of its weights and its data; what it refuses is in `bad_inputs.py`."""

    @pytest.fixture
    def said(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The lines that the commands log."""
        said: list[str] = []
        for module in ("cli.fit", "cli.checks", "data.datamodule", "data.documents"):
            monkeypatch.setattr(f"packmamba.{module}.rank_zero_info", said.append)
        return said

    @pytest.mark.slow
    def test_it_says_what_is_not_as_the_checkpoint_knows_it(self, project: Path, said: list[str]) -> None:
        assert run("fit", "--config", "config.yaml", "--trainer.max_steps", "1") == 0
        checkpoint = ["--config", "config.yaml", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]
        said.clear()
        assert run("validate", *checkpoint) == 0
        assert [line for line in said if "packs of" not in line] == []
        for command, options, line in (
            (
                "validate",
                ["--data.capacity", "32"],
                "long documents are cut at other places: data.capacity was 64 and is",
            ),
            ("validate", ["--data.seed", "3", "--allow_other_data"], "data.seed was 0 and is 3"),
            ("test", [], "test: there is no data.test_source; these are the validation documents, 0.2 of data.source"),
            ("predict", [], "predict: there is no data.predict_source; these are the validation documents"),
            ("validate", ["--trainer.limit_val_batches", "1"], "limit_val_batches 1 leaves 2 of 8 documents whole"),
            ("validate", ["--data.max_val_documents", "3"], "val: 3 of 8 documents, as data.max_val_documents says"),
        ):
            said.clear()
            assert run(command, *checkpoint, *options) == 0
            assert any(line in entry for entry in said), (line, said)

    def test_random_weights_are_evaluated_where_one_insists(self, project: Path, said: list[str]) -> None:
        assert run("validate", "--config", "config.yaml", "--untrained") == 0
        assert "weights: random, as --untrained asks; nothing has been learned" in said

    def test_options_of_a_file_that_do_nothing_are_said(self, project: Path, said: list[str]) -> None:
        text = Path("config.yaml").read_text().replace("capacity: 64", "capacity: 64\n  buffer: 7")
        Path("buffer.yaml").write_text(text)
        assert run("validate", "--config", "buffer.yaml", "--untrained") == 0
        assert any(line.startswith("data.buffer 7 does nothing") for line in said)
