"""Length distributions: exact totals, replayable, refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from packmamba.data.lengths import (
    DISTRIBUTIONS,
    LONGEST,
    SHORTEST,
    read_histogram,
    sample_histogram,
    sample_lengths,
)


@pytest.mark.parametrize("num_tokens", [1, 57, 4096, 65_537])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_lengths_add_up_to_the_tokens(name, num_tokens):
    lengths = sample_lengths(name, num_tokens=num_tokens, seed=3)
    assert lengths.sum() == num_tokens
    assert lengths.min() >= 1
    assert lengths.dtype == np.int64


@pytest.mark.parametrize("name", ["lognormal", "uniform", "equal", "rows", "tiny"])
def test_as_many_documents_as_asked(name):
    assert sample_lengths(name, num_documents=7).shape == (7,)


def test_lognormal_has_the_mean_and_range_it_says():
    lengths = sample_lengths("lognormal", num_documents=100_000)
    assert abs(lengths.mean() - 650) < 10
    assert lengths.min() == SHORTEST
    assert lengths.max() == LONGEST


def test_tiny_documents_have_1_to_19_tokens_and_10_on_average():
    lengths = sample_lengths("tiny", num_tokens=1_000_000)
    assert (lengths.min(), lengths.max()) == (1, 19)
    assert abs(lengths.mean() - 10) < 0.1


def test_rows_all_have_one_length():
    assert sample_lengths("rows", num_tokens=65_536).tolist() == [1024] * 64


def test_a_seed_is_replayed_and_another_differs():
    first = sample_lengths("uniform", num_tokens=10_000, seed=1)
    assert np.array_equal(first, sample_lengths("uniform", num_tokens=10_000, seed=1))
    assert not np.array_equal(first[:4], sample_lengths("uniform", num_tokens=10_000, seed=2)[:4])


BAD = {
    "unknown name": (
        ("zipf", {"num_tokens": 5}),
        "unknown .*'zipf'; available: lognormal, uniform, equal, rows, tiny, giant",
    ),
    "no size": (("equal", {}), "either num_tokens or num_documents"),
    "two sizes": (("equal", {"num_tokens": 5, "num_documents": 5}), "num_tokens=5 and num_documents=5"),
    "no tokens": (("equal", {"num_tokens": 0}), "num_tokens must be at least 1, got 0"),
    "several giants": (("giant", {"num_documents": 2}), "give num_tokens, not num_documents=2"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(call, message):
    name, sizes = call
    with pytest.raises(ValueError, match=message):
        sample_lengths(name, **sizes)


HISTOGRAMS = {
    "object.json": '{"7": 2, "3": 4}',
    "pairs.json": "[[7, 2], [3, 4]]",
    "names.csv": "length,count\n7,2\n3,4\n",
    "bare.csv": "7, 2\n\n3, 4\n",
}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_histogram_is_read_from_json_or_csv(tmp_path, name):
    (tmp_path / name).write_text(HISTOGRAMS[name])
    lengths, counts = read_histogram(tmp_path / name)
    assert (lengths.tolist(), counts.tolist()) == ([3, 7], [4, 2])
    assert set(sample_histogram(tmp_path / name, num_documents=100).tolist()) == {3, 7}


BAD_HISTOGRAMS = {
    "not-json.json": ("{", r"not-json\.json is not JSON"),
    "number.json": ("7", r'must hold \{"length": count, \.\.\.\}'),
    "fraction.json": ('{"7": 2, "8": 0.5}', r"entry 2: expected a length and a count, two whole numbers, got \('8', 0"),
    "word.json": ('{"long": 2}', r"entry 1: expected a length and a count, two whole numbers, got \('long', 2\)"),
    "three.csv": ("1,2\n1,2,3\n", "entry 2: expected a length and a count"),
    "word.csv": ("length,count\n7,many\n", r"entry 1: expected .* got \['7', 'many'\]"),
    "zero.csv": ("0,2\n", "entry 1: a length is at least 1 and a count at least 0, got 0 and 2"),
    "negative.csv": ("5,-2\n", "entry 1: a length is at least 1 and a count at least 0, got 5 and -2"),
    "twice.csv": ("5,2\n5,3\n", "entry 2: the length 5 occurs a second time"),
    "nothing.csv": ("length,count\n", "counts no document"),
    "none.json": ('{"7": 0}', "counts no document"),
    "what.txt": ("7 2", r"is a \.json or a \.csv file"),
}


@pytest.mark.parametrize("name", BAD_HISTOGRAMS)
def test_a_malformed_histogram_is_named_with_its_entry(tmp_path, name):
    content, message = BAD_HISTOGRAMS[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_histogram(tmp_path / name)


def test_a_histogram_file_that_is_missing_is_named():
    with pytest.raises(FileNotFoundError, match=r"no histogram file 'nowhere\.csv'"):
        sample_histogram("nowhere.csv", num_documents=3)
