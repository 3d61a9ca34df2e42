"""Made-up documents: replayable, ASCII, and what they claim to be."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("datasets")

import numpy as np

from packmamba.data.lengths import LONGEST, SHORTEST
from packmamba.data.sources import Copy, RandomLengths, Recall
from packmamba.data.text.tokenizers import ByteTokenizer

SOURCES = {
    "recall": Recall(num_documents=50, max_pairs=5),
    "copy": Copy(num_documents=50, max_length=9),
    "random-lengths": RandomLengths(num_documents=50),
}


def texts_of(source, cache) -> list[str]:
    return source.load(cache)["text"][:]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_seed_always_gives_the_same_documents(source, tmp_path):
    texts = texts_of(source, tmp_path / "one")
    assert len(texts) == 50
    assert len(set(texts)) > 30
    assert texts_of(source, tmp_path / "two") == texts
    other = type(source)(num_documents=50, seed=1)
    assert texts_of(other, tmp_path / "one") != texts


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_bytes_make_one_token_of_each_character(source, cache):
    for text in texts_of(source, cache):
        assert ByteTokenizer(add_eos=False).encode(text).size == len(text)


def test_a_second_load_comes_from_the_cache(cache, monkeypatch):
    first = Recall(num_documents=5).load(cache)
    monkeypatch.setattr(Recall, "texts", lambda *arguments: pytest.fail("made again"))
    assert Recall(num_documents=5).load(cache)._fingerprint == first._fingerprint


def test_recall_asks_for_every_key_once_in_another_order(cache):
    shuffled = 0
    for text in texts_of(SOURCES["recall"], cache):
        told, asked = (
            [half[at : at + 2] for at in range(0, len(half), 2)] for half in (text.split("?")[0], text.split("?")[1])
        )
        assert 1 <= len(told) <= 5
        assert sorted(told) == sorted(asked)
        assert len({pair[0] for pair in told}) == len(told), "a key with two values"
        assert all(pair[0].isalpha() and pair[1].isdigit() for pair in told)
        shuffled += told != asked
    assert shuffled > 10


def test_copies_repeat_what_came_before_the_bar(cache):
    lengths = set()
    for text in texts_of(SOURCES["copy"], cache):
        first, second = text.split("|")
        assert first == second
        lengths.add(len(first))
    assert min(lengths) == 1
    assert max(lengths) == 9


def test_lengths_follow_the_named_distribution(cache):
    lengths = np.array([len(text) for text in texts_of(RandomLengths(num_documents=2000), cache)])
    assert lengths.min() >= SHORTEST
    assert lengths.max() <= LONGEST
    assert 610 < lengths.mean() < 690


def test_lengths_follow_a_histogram(tmp_path, cache):
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps({"3": 30, "70": 10, "9": 0}))
    texts = texts_of(RandomLengths(distribution=str(path), num_documents=1000), cache)
    lengths, counts = np.unique([len(text) for text in texts], return_counts=True)
    assert lengths.tolist() == [3, 70]
    assert 700 < counts[0] < 800
    path.write_text(json.dumps({"4": 1}))
    assert texts_of(RandomLengths(distribution=str(path), num_documents=2), cache)[0][4:] == ""


BAD = {
    "no-document": (Recall(num_documents=0), ValueError, r"Recall.num_documents must be at least 1, got 0"),
    "too-many-pairs": (Recall(max_pairs=53), ValueError, r"Recall.max_pairs must be between 1 and 52, got 53"),
    "no-length": (Copy(max_length=0), ValueError, r"Copy.max_length must be at least 1, got 0"),
    "unknown": (RandomLengths(distribution="zipf"), ValueError, "unknown length distribution 'zipf'; available: logn"),
    "missing": (RandomLengths(distribution="no.csv"), FileNotFoundError, r"no histogram file 'no\.csv'"),
}


@pytest.mark.parametrize(("source", "error", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_made_says_why(cache, source, error, message):
    with pytest.raises(error, match=message):
        source.load(cache)
