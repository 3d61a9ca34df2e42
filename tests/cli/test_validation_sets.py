"""`packmamba validate` with several validation sets, and `fit` on files of one's own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

from packmamba import cli

SETS = "{many: {class_path: Files, init_args: {paths: docs.jsonl}}, code: {class_path: Recall, init_args: \
{num_documents: 4}}}"


@pytest.mark.slow
def test_a_run_with_several_sets_logs_and_prints_each(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "config.yaml", "--data.val_sources", SETS]
    assert cli.main(["fit", *options]) == 0
    (log,) = Path("runs/tiny").glob("version_0/metrics.csv")
    with log.open() as file:
        last = [row for row in csv.DictReader(file) if row["val/loss"]][-1]
    capsys.readouterr()
    assert cli.main(["validate", *options, "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line[:4] in ("many", "code", "all ")}
    assert {name: float(row[0]) for name, row in rows.items()} == {
        name: pytest.approx(float(last[column]), abs=1e-4)
        for name, column in (("many", "val/many/loss"), ("code", "val/code/loss"), ("all", "val/loss"))
    }
    assert [row[-1] for row in rows.values()] == ["40", "4", "44"]
    assert "DataLoader" not in printed


@pytest.mark.parametrize("documents", [5, 200])
def test_the_quickstart_trains_on_files_of_ones_own(project: Path, documents: int) -> None:
    Path("mine").mkdir()
    rows = (json.dumps({"text": f"text {number} " + "word " * (number % 30)}) for number in range(documents))
    Path("mine/texts.jsonl").write_text("\n".join(rows))
    options = ["--data.source", "Files", "--data.source.paths", "mine", "--data.cache_dir", "cache"]
    small = ["--model.config.layer_pattern", "-", "--model.config.d_model", "8", "--trainer.max_steps", "3"]
    assert cli.main(["fit", "--config", "quickstart", *options, *small]) == 0
    folder = Path("runs/quickstart/version_0")
    with (folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["val/loss"]] == ["2"]
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"best.ckpt", "last.ckpt"}


def test_one_document_leaves_nothing_to_train_on_and_says_what_would(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("one.txt").write_text("the only one")
    own = ["--data.source", "Files", "--data.source.paths", "one.txt", "--data.cache_dir", "cache"]
    assert cli.main(["fit", "--config", "quickstart", *own]) == 2
    error = capsys.readouterr().err
    assert "val_fraction 0.02 takes 1 of the 1 documents" in error
    assert "set val_source, or val_fraction=0" in error
