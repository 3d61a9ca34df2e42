"""Training a BPE tokenizer: on every text, into a new folder, never a broken one."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("datasets")

from datasets import Dataset

from packmamba.data.text.bpe import SMALLEST_VOCABULARY, train_bpe
from packmamba.data.text.tokenizers import BPETokenizer

WORDS = ["wombat " * 20, "quokka " * 20]


def trained(rows: dict, folder, vocab_size: int = 300) -> BPETokenizer:
    train_bpe(Dataset.from_dict(rows), vocab_size, folder)
    return BPETokenizer(path=str(folder))


def test_frequent_words_become_one_token(tmp_path):
    tokenizer = trained({"text": WORDS}, tmp_path / "new")
    assert all(ids.size == 1 for ids in tokenizer.encode_texts([" wombat", " quokka"]))
    assert tokenizer.vocab_size < 300, "there is nothing more to merge"


def test_conversations_are_trained_on_too(tmp_path):
    messages = [{"role": "user", "content": WORDS[0]}, {"role": "assistant", "content": None}]
    rows = {
        "messages": [messages, None, None],
        "prompt": [None, WORDS[1], None],
        "completion": [None, "numbat " * 20, None],
        "text": [None, None, "bilby " * 20],
    }
    tokenizer = trained(rows, tmp_path / "new")
    assert all(ids.size == 1 for ids in tokenizer.encode_texts([" wombat", " quokka", " numbat", " bilby"]))


@pytest.mark.slow
def test_the_vocabulary_is_as_large_as_asked_for(python_docs, tmp_path):
    train_bpe(python_docs[0].select(range(300)), 512, tmp_path / "new")
    assert BPETokenizer(path=str(tmp_path / "new")).vocab_size == 512


def test_training_again_gives_the_same_tokenizer(python_docs, tmp_path):
    for name in ("one", "two"):
        train_bpe(python_docs[0].select(range(300)), 512, tmp_path / name)
    one, two = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("one", "two"))
    assert one == two


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"at least {SMALLEST_VOCABULARY}, .*; got 259"):
        trained({"text": WORDS}, tmp_path / "new", SMALLEST_VOCABULARY - 1)


def test_a_folder_that_is_there_is_not_written_to(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match=r"mine' is there already; name a new folder"):
        trained({"text": WORDS}, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_interrupted_training_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("packmamba.data.text.bpe.json.dumps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained({"text": WORDS}, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
