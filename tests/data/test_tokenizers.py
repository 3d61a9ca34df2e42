"""Tokenizers: round trips, one policy for BOS and EOS, fingerprints that tell tokenizers apart."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.tokenizers import ByteTokenizer, HFTokenizer


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


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OSError, match="missing"):
        HFTokenizer(path=str(tmp_path / "missing"))


def test_without_transformers_the_extra_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else find_spec(name, *rest)
    )
    with pytest.raises(ImportError, match=r"packmamba\[hf\]"):
        HFTokenizer(path="gpt2")
