"""`packmamba fit --check`: everything is parsed, some documents are tokenised, nothing is trained or saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packmamba import cli


def check(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(["fit", "--config", "config.yaml", "--check", *options]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_it_shows_a_pack_the_plan_the_model_and_the_training_in_80_columns_and_saves_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = check(capsys)
    for words in (
        "documents in 6",
        "document 1 (row ",
        "<EOS>",
        "about 32 to train on, and 8 to validate on",
        "estimated from 40 documents",
        "1 x 1 packs",
        "3 steps, about 0.2",
        "attention 1 4,128",
        "FLOPs a token",
        "AdamW, weight decay 0.1; the learning rate rises to 1.0e-03",
        "runs/tiny/version_0 (CSVLogger)",
        "best.ckpt, last.ckpt",
    ):
        assert words in unwrapped(shown), words
    assert not [line for line in shown.splitlines() if len(line) > 80]
    assert shown.isascii()
    assert not Path("runs").exists()
    assert not Path("cache/tokens").exists()


def test_it_counts_exactly_where_all_documents_are_tokenised(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--config", "config.yaml", "--trainer.max_steps", "1"]) == 0
    shown = check(capsys)
    assert "exact, for the documents are tokenised already" in unwrapped(shown)
    assert "793, 96.0% of them with a loss" in shown
    assert "14 of 64 tokens" in shown
    assert "14 optimiser steps" in shown
    assert "about 14" not in shown


def test_of_a_conversation_only_what_the_assistant_says_is_marked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]}
        for i in range(30)
    ]
    Path("docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = check(capsys, "--data.source.messages_column", "messages", "--data.capacity", "512").splitlines()
    marked = [line for line in lines if line.startswith("loss | ")]
    assert marked
    assert all("answer" in line and "question" not in line for line in marked)
    assert any(line.startswith("     | question") for line in lines)


def test_a_stream_is_looked_at_from_its_beginning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = check(capsys, "--data.source.streaming", "true", "--data.val_fraction", "0")
    assert "the first of the stream" in unwrapped(shown)
    assert "unknown, for they are streamed" in shown
    assert "3 steps, about" in shown


def test_accumulated_batches_make_longer_steps_and_epochs_lead_to_a_last_step(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "2", "--trainer.accumulate_grad_batches", "7"]
    shown = check(capsys, *options)
    assert "7 x 1 packs" in shown
    assert "about 2 optimiser steps" in shown
    assert "4 steps, about 2.00 epochs" in shown
    assert "at step 4" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.config.vocab_size", "200"], "the data's vocabulary has 258 tokens"),
        (["--data.source.paths", "[nothing.jsonl]"], "no file matches 'nothing.jsonl'"),
        (["--trainer.accelerator", "tpux"], "tpux"),
    ],
)
def test_what_training_would_refuse_it_refuses(
    options: list[str], message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in check(capsys, *options, code=2)


def test_control_characters_of_a_document_do_not_reach_the_terminal(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("docs.jsonl").write_text("".join(json.dumps({"text": f"a\x1b[31mb\r{i}\x07"}) + "\n" for i in range(30)))
    shown = check(capsys)
    assert "a\\x1b[31mb\\x0d" in shown
    assert "\x1b" not in shown
