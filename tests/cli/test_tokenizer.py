"""`packmamba tokenizer train`: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packmamba import cli
from packmamba.data.text.tokenizers import BPETokenizer, HFTokenizer


@pytest.fixture(autouse=True)
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"body": f"document {i} about wombats\n"} for i in range(50)]
    Path("docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(*options: str) -> int:
    source = ["--source", "Files", "--source.paths", '["docs.jsonl"]', "--source.column", "body"]
    return cli.main(["tokenizer", "train", *source, "--cache_dir", "cache", *options])


def test_a_tokenizer_is_trained_on_a_source_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--output", "new", "--vocab_size", "290") == 0
    output = capsys.readouterr().out
    assert "documents        50\n" in output
    assert "vocabulary       290 tokens\n" in output
    command = " ".join(output.replace("\\\n", " ").split())
    assert "--data.tokenizer BPETokenizer --data.tokenizer.path new --model.config.vocab_size 290" in command
    ours, theirs = BPETokenizer(path="new"), HFTokenizer(path="new")
    assert ours.encode("wombats").tolist() == theirs.encode("wombats").tolist()
    assert ours.encode("wombats").size < len("wombats")


def test_bytes_a_token_are_those_of_the_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--output", "new", "--vocab_size", "290", "--max_documents", "7") == 0
    output = capsys.readouterr().out
    texts = [f"document {i} about wombats\n" for i in range(7)]
    tokens = sum(ids.size for ids in BPETokenizer(path="new").encode_texts(texts))
    assert f"bytes per token  {sum(map(len, texts)) / tokens:.2f}" in output


@pytest.mark.slow
def test_the_offline_corpus_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenizer", "train", "--output", "new", "--max_documents", "20", "--cache_dir", "cache"]) == 0
    assert "(fewer than 8,192: the documents have no more pairs to merge)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "new", "--vocab_size", "100"], "vocab_size must be at least 260"),
        (["--output", "new", "--vocab_size", "many"], "vocab_size must be a whole number, got 'many'"),
        (["--output", "new", "--source.column", "text"], "has no column 'text'; its columns: body"),
        (["--output", "new", "--max_documents", "0"], "--max_documents must be at least 1, got 0"),
        (["--output", "cache"], "'cache' is there already; name a new folder"),
        ([], "--output must be given"),
    ],
)
def test_what_cannot_be_trained_says_why(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("cache").mkdir()
    assert train(*options) == 2
    assert message in capsys.readouterr().err
    assert not Path("new").exists()


def test_without_a_subcommand_the_one_there_is_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenizer"]) == 2
    assert "train" in capsys.readouterr().err
