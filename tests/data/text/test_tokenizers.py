"""Tokenizers: round trips, one policy for BOS and EOS, fingerprints that tell tokenizers apart."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

pytest.importorskip("datasets")

import numpy as np
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.text.bpe import train_bpe
from packmamba.data.text.tokenizers import BPETokenizer, ByteTokenizer, HFTokenizer


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer(add_bos=True)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.max() < tokenizer.vocab_size
    assert ids.size == len(text.encode()) + 2


def test_bytes_end_with_eos_unless_told_otherwise():
    assert ByteTokenizer().encode("ab").tolist() == [97, 98, 257]
    assert ByteTokenizer(add_bos=True).encode("ab").tolist() == [256, 97, 98, 257]
    assert ByteTokenizer(add_eos=False).encode("ab").tolist() == [97, 98]


def test_bytes_that_are_not_utf8_decode_to_a_replacement_character():
    assert ByteTokenizer().decode([0xFF, 97]) == "\ufffda"


@pytest.mark.parametrize("wrong", [-1, 258])
def test_an_id_that_does_not_exist_is_named(wrong):
    with pytest.raises(ValueError, match=rf"token id {wrong} does not exist; ids are 0 to 257"):
        ByteTokenizer().decode([97, wrong])


def test_fingerprints_differ_with_the_policy():
    fingerprints = {ByteTokenizer(add_bos=b, add_eos=e).fingerprint for b in (True, False) for e in (True, False)}
    assert len(fingerprints) == 4


@given(st.text())
def test_each_byte_says_which_character_it_is_a_part_of(text):
    ids, begins, ends = ByteTokenizer().encode_with_offsets([text])[0]
    assert ids.tolist() == list(text.encode())
    assert "".join(text[at] for at in dict.fromkeys(begins.tolist())) == text
    assert all(b"".join(bytes([i]) for i in ids[begins == at].tolist()).decode() == text[at] for at in set(begins))
    assert (ends - begins == 1).all()


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory) -> str:
    """A folder with a tokenizer of five words and an EOS, without a BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<eos>": 1, "the": 2, "cat": 3, "sat": 4}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)
    return str(folder)


def test_a_transformers_folder_encodes_with_the_same_policy(word_tokenizer):
    tokenizer = HFTokenizer(path=word_tokenizer)
    assert tokenizer.encode("the cat sat").tolist() == [2, 3, 4, 1]
    assert tokenizer.encode("the dog").tolist() == [2, 0, 1]
    assert [ids.tolist() for ids in tokenizer.encode_texts(["cat", "", "sat"])] == [[3], [], [4]]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (5, None, 1, 1)
    assert tokenizer.decode(np.array([2, 3, 4, 1])) == "the cat sat"


def test_a_transformers_folder_gives_the_same_fingerprint_each_time_it_is_read(word_tokenizer):
    first, second = HFTokenizer(path=word_tokenizer), HFTokenizer(path=word_tokenizer)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != HFTokenizer(path=word_tokenizer, add_eos=False).fingerprint


def test_a_policy_without_its_token_is_refused(word_tokenizer):
    with pytest.raises(ValueError, match="has no bos token; set add_bos=False"):
        HFTokenizer(path=word_tokenizer, add_bos=True)


def hub_names_that_cannot_be_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained",
        lambda path: (_ for _ in ()).throw(OSError(f"We couldn't connect\nfor {path}")),
    )


@pytest.mark.parametrize("tokenizer", [HFTokenizer, BPETokenizer])
def test_a_missing_folder_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in (str(tmp_path / "missing"), "./missing", "runs/missing", "a/b/missing", "~/no-such-folder"):
        with pytest.raises(FileNotFoundError, match=f"there is no tokenizer folder {path!r}"):
            tokenizer(path=path)


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch):
    hub_names_that_cannot_be_asked_for(monkeypatch)
    for name in ("gpt9", "someone/gpt9"):
        with pytest.raises(FileNotFoundError, match=f"no folder '{name}', and .* from the hub: We couldn't connect$"):
            HFTokenizer(path=name)


def test_a_folder_without_a_tokenizer_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(ValueError, match=r"holds no tokenizer that transformers can read, but model\.bin: "):
        HFTokenizer(path=str(tmp_path))
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json, but model\.bin; choose another"):
        BPETokenizer(path=str(tmp_path))


@pytest.mark.parametrize(
    ("file", "message"), [("tokenizer.json", " as a tokenizer: "), ("tokenizer_config.json", ": ")]
)
def test_a_file_that_is_not_a_tokenizer_is_named(word_tokenizer, tmp_path, file, message):
    shutil.copytree(word_tokenizer, tmp_path / "copy")
    (tmp_path / "copy" / file).write_text("{")
    with pytest.raises(ValueError, match=rf"cannot read '.*{file}'{message}"):
        BPETokenizer(path=str(tmp_path / "copy"))


def test_the_same_folder_reads_the_same_with_and_without_transformers(bpe_folder):
    texts = ["import this", "", "naïve 🐍\n\n  x", "<|im_start|>user\n"]
    ours, theirs = BPETokenizer(path=bpe_folder, add_bos=True), HFTokenizer(path=bpe_folder, add_bos=True)
    for text in texts:
        assert ours.encode(text).tolist() == theirs.encode(text).tolist()
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) == text
    for one, other in zip(ours.encode_with_offsets(texts), theirs.encode_with_offsets(texts), strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert {"bos_token": "<|bos|>", "eos_token": "<|eos|>"} == ours.special_tokens == theirs.special_tokens


@given(st.text())
def test_bpe_round_trips_and_tells_characters_apart(bpe_folder, text):
    tokenizer = BPETokenizer(path=bpe_folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids, begins, ends = tokenizer.encode_with_offsets([text])[0]
    assert ids.tolist() == tokenizer.encode_texts([text])[0].tolist()
    assert set(range(len(text))) == {at for begin, end in zip(begins, ends, strict=True) for at in range(begin, end)}


def test_bpe_gives_another_fingerprint_for_another_policy_or_vocabulary(bpe_folder, tmp_path):
    train_bpe(Dataset.from_dict({"text": ["other words"] * 3}), 300, tmp_path / "other")
    policies = [BPETokenizer(path=bpe_folder, add_bos=b, add_eos=e) for b in (True, False) for e in (True, False)]
    fingerprints = {t.fingerprint for t in [*policies, BPETokenizer(path=str(tmp_path / "other"))]}
    assert len(fingerprints) == 5
    assert BPETokenizer(path=bpe_folder).fingerprint in fingerprints


def test_a_bpe_tokenizer_without_a_declared_eos_needs_the_policy(bpe_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text((Path(bpe_folder) / "tokenizer.json").read_text())
    with pytest.raises(ValueError, match="has no eos token; set add_eos=False"):
        BPETokenizer(path=str(tmp_path))
    assert BPETokenizer(path=str(tmp_path), add_eos=False).eos_id is None


def test_without_transformers_the_extra_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else find_spec(name, *rest)
    )
    with pytest.raises(ImportError, match=r"packmamba\[hf\]"):
        HFTokenizer(path="gpt2")
