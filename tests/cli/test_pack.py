"""`packmamba pack`: the report of every strategy, from lengths and from text, and what it says to wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("yaml")
pytest.importorskip("lightning")
pytest.importorskip("datasets")

import numpy as np
import yaml

from packmamba import cli
from packmamba.cli import pack as pack_report
from packmamba.cli.pack import _attention_costs
from packmamba.config import ModelConfig
from packmamba.data.configuration import parse_configuration
from packmamba.data.packers import STRATEGIES, pack
from packmamba.data.plan import PlanOptions
from packmamba.data.statistics import describe_lengths, report_packs
from packmamba.model import attention_costs
from packmamba.visible_pairs import AttentionCost

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with lengths and a small corpus."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    np.save("lengths.npy", np.arange(1, 101))
    Path("lengths.json").write_text(json.dumps([5, 10, 3]))
    Path("docs.jsonl").write_text("".join(json.dumps({"text": "abc " * (i % 9 + 1)}) + "\n" for i in range(40)))
    config = {
        "name": "tiny",
        "seed_everything": 1,
        "model": {"config": {"layer_pattern": "1*", "d_model": 64, "vocab_size": 258}, "warmup_steps": 3},
        "data": {
            "source": {"class_path": "packmamba.data.sources.Files", "init_args": {"paths": ["docs.jsonl"]}},
            "capacity": 50,
            "val_fraction": 0.1,
            "cache_dir": str(tmp_path / "cache"),
        },
        "trainer": {"max_steps": 3},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(["pack", *arguments])


def test_lengths_are_described() -> None:
    described = describe_lengths(np.array([4, 1, 2, 3, 10]))
    assert {name: described[name] for name in ("documents", "tokens", "mean", "shortest", "longest")} == {
        "documents": 5,
        "tokens": 20,
        "mean": 4.0,
        "shortest": 1,
        "longest": 10,
    }
    assert described["percentiles"] == {"1": 1, "5": 1, "25": 2, "50": 3, "75": 4, "95": 10, "99": 10}


def test_imbalance_is_that_of_the_whole_steps_or_else_of_what_there_is() -> None:
    lengths = [4, 2, 3, 3, 4]  # three ranks: (4, 2, 3) and (3, 4, none)
    uneven = report_packs(lambda: pack(lengths, 4, "single"), PlanOptions(world_size=3, balance="none"))
    assert uneven.micro_step_imbalance == uneven.step_imbalance == pytest.approx(4 / 3 - 1)
    alone = report_packs(lambda: pack([4], 4, "single"), PlanOptions(world_size=2))
    assert alone.micro_step_imbalance == alone.step_imbalance == 1.0
    longer = PlanOptions(world_size=3, accumulation=2, balance="none")
    assert report_packs(lambda: pack(lengths, 4, "single"), longer).step_imbalance == pytest.approx(7 / (16 / 3) - 1)


def test_a_step_of_fewer_micro_steps_does_not_count_beside_whole_ones() -> None:
    options = PlanOptions(world_size=2, accumulation=2, balance="none")
    report = report_packs(lambda: pack([2, 2, 2, 2, 3, 1], 4, "single"), options)
    assert (report.micro_step_imbalance, report.step_imbalance) == (0.5, 0.0)


def test_imbalance_counts_attention_whatever_is_balanced() -> None:
    options = PlanOptions(world_size=2, balance="tokens", attention_costs=(AttentionCost(cost=1.0),))
    report = report_packs(lambda: pack([4, 1, 1, 1, 1], 4, "sequential"), options)
    assert report.step_imbalance == pytest.approx(14 / 11 - 1)  # 4 + 10 pairs against 4 + 4


def test_random_lengths_are_packed_by_every_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--documents", "500", "--world_size", "2", "--accumulation", "3", "--capacity", "5000"]
    assert run("--distribution", "lognormal", *options, "--json", "report.json", "--plot", "report.png") == 0
    out = capsys.readouterr().out
    report = json.loads(Path("report.json").read_text())
    assert report["lengths"]["documents"] == 500
    assert (report["plan"]["world_size"], report["plan"]["accumulation"], report["capacity"]) == (2, 3, 5000)
    assert [row["strategy"] for row in report["strategies"]] == [s for s in STRATEGIES if s != "threshold_filtering"]
    assert "500 documents" in out
    for row in report["strategies"]:
        (line,) = [line.split() for line in out.splitlines() if line.startswith(row["strategy"] + " ")]
        assert line[1] == f"{row['packs']:,}"
        assert line[3] == f"{row['padding']:.2%}"
    best = next(row for row in report["strategies"] if row["strategy"] == "best_fit_decreasing")
    assert best["efficiency"] > 0.95
    assert Path("report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("file", ["lengths.npy", "lengths.json"])
def test_lengths_come_from_a_file(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--lengths", file, "--strategies", "sequential", "single", "--json", "report.json") == 0
    lengths = np.load(file) if file.endswith(".npy") else json.loads(Path(file).read_text())
    report = json.loads(Path("report.json").read_text())
    assert report["lengths"]["tokens"] == sum(lengths)
    assert [row["strategy"] for row in report["strategies"]] == ["sequential", "single"]


def test_equal_lengths_can_be_drawn() -> None:
    assert run("--distribution", "equal", "--documents", "10", "--plot", "equal.png") == 0


def test_documents_come_as_for_fit_and_the_model_says_what_attention_costs(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "config.yaml", "--data.balance", "flops", "--json", "report.json"]
    assert run(*options) == 0
    report = json.loads(Path("report.json").read_text())
    assert report["lengths"]["documents"] == 36
    assert [row["strategy"] for row in report["strategies"]] == list(STRATEGIES)
    assert report["capacity"] == 50
    assert report["plan"]["balance"] == "flops"
    model = ModelConfig(layer_pattern="1*", d_model=64, vocab_size=258)
    (cost,) = attention_costs(model)
    assert cost.cost > 0
    assert report["plan"]["attention_costs"] == [{"cost": cost.cost, "window": None}]
    assert run(*options, "--split", "val", "--capacity", "70", "--attention_cost", "0.5", "--data.seed", "3") == 0
    report = json.loads(Path("report.json").read_text())
    assert (report["lengths"]["documents"], report["capacity"]) == (4, 70)
    assert report["plan"]["attention_costs"] == [{"cost": 0.5, "window": None}]


def test_many_documents_are_embedded_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_report, "MOST_EMBEDDED", 35)
    for asked, expected in (([], False), (["--strategies", "threshold_filtering"], True)):
        assert run("--config", "config.yaml", "--json", "report.json", *asked) == 0
        found = [row["strategy"] for row in json.loads(Path("report.json").read_text())["strategies"]]
        assert ("threshold_filtering" in found) == expected


def test_a_stream_is_refused_for_nobody_knows_its_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", "config.yaml", "--data.source.streaming", "true", "--data.val_fraction", "0") == 2
    assert "the training documents are streamed" in capsys.readouterr().err


def test_documents_that_must_not_be_cut_leave_out_the_strategy_that_cuts(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "config.yaml", "--data.long_documents", "error", "--json", "report.json"]
    assert run(*options) == 0
    assert "wrapped" not in [row["strategy"] for row in json.loads(Path("report.json").read_text())["strategies"]]
    assert run(*options, "--capacity", "30") == 2
    assert "tokens, more than the capacity of 30" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_fit_is_understood(path: Path) -> None:
    _, values = parse_configuration(["--config", str(path)])
    config = yaml.safe_load(path.read_text())
    assert values.data.capacity == config["data"]["capacity"]
    assert bool(_attention_costs(values)) == ("*" in config["model"]["config"]["layer_pattern"])


def test_the_configuration_that_a_run_saves_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--config", "config.yaml", "--print_config"]) == 0
    Path("saved.yaml").write_text(capsys.readouterr().out)
    _, values = parse_configuration(["--config", "saved.yaml"])
    assert values.data.capacity == 50
    assert _attention_costs(values)[0].cost > 0


def test_lengths_need_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from packmamba import cli; cli.main(['pack', '--lengths', 'lengths.npy']);"
        "print([m for m in ('torch', 'lightning', 'datasets', 'jsonargparse', 'matplotlib') if m in sys.modules])"
    )
    path = f"{ROOT}:{ROOT / 'kernels'}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


ERRORS = {
    "unknown distribution": (["--distribution", "zipf"], "unknown distribution 'zipf'; available: lognormal, uniform"),
    "unknown strategy": (
        ["--lengths", "lengths.npy", "--strategies", "best"],
        "unknown strategy 'best'; available: seq",
    ),
    "no embeddings": (
        ["--lengths", "lengths.npy", "--strategies", "threshold_filtering"],
        "'threshold_filtering' compares documents, and there are only lengths; name a --config",
    ),
    "no lengths": (["--lengths", "gone.npy"], "there is no file of lengths 'gone.npy'"),
    "kind of file": (["--lengths", "docs.jsonl"], "a .npy file or a list in a .json file, got 'docs.jsonl'"),
    "capacity": (
        ["--lengths", "lengths.npy", "--capacity", "0"],
        "--capacity must be a whole number of at least 1, got '0'",
    ),
    "ranks": (
        ["--lengths", "lengths.npy", "--world_size", "0"],
        "--world_size must be a whole number of at least 1, got '0'",
    ),
    "documents": (
        ["--distribution", "equal", "--documents", "0"],
        "--documents must be a whole number of at least 1, got '0'",
    ),
    "documents and lengths": (
        ["--lengths", "lengths.npy", "--documents", "3"],
        "--documents 3 goes with --distribution",
    ),
    "documents of text": (["--documents", "3"], "for fewer documents there is --data.max_documents"),
    "text and lengths": (["--lengths", "lengths.npy", "--data.capacity", "5"], "leave out --data.capacity 5"),
    "unknown option": (["--capcity", "5"], "capcity"),
    "no config": (["--config", "gone.yaml"], "gone.yaml"),
    "wrong section": (["--config", "config.yaml", "--dta.capacity", "5"], "dta.capacity"),
    "folder": (["--lengths", "lengths.npy", "--json", "gone/report.json"], "there is no folder 'gone' to write"),
    "no picture": (
        ["--lengths", "lengths.npy", "--plot", "packs.foo"],
        "cannot be written as 'packs.foo'; the suffix must",
    ),
    "wrong value": (["--config", "config.yaml", "--data.capacity", "many"], "data.capacity"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input_is_a_short_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "cannot read lengths from 'bad.json'"),
        ("[]", "has to hold a list of integers, at least one"),
        ("[1.5]", "has to hold a list of integers, at least one"),
        ("[[1], [2]]", "has to hold a list of integers, at least one"),
        ("[3, 0]", "document 1 has length 0; the least is 1 token"),
    ],
)
def test_bad_files_of_lengths_are_refused(content: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.json").write_text(content)
    assert run("--lengths", "bad.json") == 2
    assert message in capsys.readouterr().err


def test_a_picture_without_matplotlib_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--lengths", "lengths.npy", "--plot", "packs.png") == 2
    assert "pip install 'packmamba[plots]'" in capsys.readouterr().err


def test_the_plan_accumulates_as_tokens_per_step_asks_for() -> None:
    for options, accumulation in (([], 3), (["--accumulation", "2"], 2)):
        given = ["--config", "config.yaml", "--world_size", "2", "--data.tokens_per_step", "300", "--json", "p.json"]
        assert run(*given, *options, "--strategies", "sequential") == 0
        assert json.loads(Path("p.json").read_text())["plan"]["accumulation"] == accumulation
