"""Help pages fit into 80 columns, and begin with what is packmamba's."""

from __future__ import annotations

import pytest

from packmamba import cli


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def page(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["fit", "--help"],
        ["predict", "--help"],
        ["pack", "--help"],
        ["compare", "--help"],
        ["info", "--help"],
        ["quickstart", "--help"],
        ["tokenizer", "--help"],
    ],
    ids=" ".join,
)
def test_no_line_is_longer_than_80_characters(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(capsys, *arguments)
    assert len(lines) > 5
    assert not [line for line in lines if len(line) > 80]
    assert lines[0].startswith("usage: packmamba")


def test_the_model_comes_first_then_the_data_then_the_run_then_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(capsys, "fit", "--help")
    names = [line.split()[0].rstrip(",") for line in lines if line.startswith("  --")]
    sections = [name.removeprefix("--").partition(".")[0] for name in names]
    places = [sections.index(section) for section in ("model", "data", "name", "trainer")]
    assert places == sorted(places)
    assert {"--trainer.max_steps", "--trainer.precision", "--check", "--logger", "--progress"} <= set(names)
    assert "--trainer.barebones" not in names
    assert any("packmamba fit --help all" in line for line in lines)
    assert len(lines) < 400


def test_all_options_of_the_trainer_are_a_word_away(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(capsys, "fit", "--help", "all")
    assert any(line.startswith("  --trainer.barebones") for line in lines)


def test_the_options_of_prediction_are_on_its_page_alone(capsys: pytest.CaptureFixture[str]) -> None:
    predict = "\n".join(page(capsys, "predict", "--help"))
    assert "--output FILE" in predict
    assert "--check" not in predict
    assert "Go on from this checkpoint" not in predict
