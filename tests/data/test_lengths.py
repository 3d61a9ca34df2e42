"""Length distributions: exact totals, replayable, refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from packmamba.data.lengths import DISTRIBUTIONS, LONGEST, SHORTEST, sample_lengths


@pytest.mark.parametrize("num_tokens", [1, 57, 4096, 65_537])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_lengths_add_up_to_the_tokens(name, num_tokens):
    lengths = sample_lengths(name, num_tokens=num_tokens, seed=3)
    assert lengths.sum() == num_tokens
    assert lengths.min() >= 1
    assert lengths.dtype == np.int64


@pytest.mark.parametrize("name", ["lognormal", "uniform", "equal"])
def test_as_many_documents_as_asked(name):
    assert sample_lengths(name, num_documents=7).shape == (7,)


def test_lognormal_has_the_mean_and_range_it_says():
    lengths = sample_lengths("lognormal", num_documents=100_000)
    assert abs(lengths.mean() - 650) < 10
    assert lengths.min() == SHORTEST
    assert lengths.max() == LONGEST


def test_a_seed_is_replayed_and_another_differs():
    first = sample_lengths("uniform", num_tokens=10_000, seed=1)
    assert np.array_equal(first, sample_lengths("uniform", num_tokens=10_000, seed=1))
    assert not np.array_equal(first[:4], sample_lengths("uniform", num_tokens=10_000, seed=2)[:4])


BAD = {
    "unknown name": (("zipf", {"num_tokens": 5}), "unknown .*'zipf'; available: lognormal, uniform, equal, giant"),
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
