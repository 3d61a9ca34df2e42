"""Threshold filtering: related documents come together, near copies do not, nothing is left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.packers import ThresholdFiltering, ngram_embeddings, pack
from packmamba.data.packers.threshold import threshold_path

TOPICS = 8


def topical(documents: int = 400, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around the corners of a simplex, and the corner of each."""
    rng = np.random.default_rng(0)
    topic = rng.integers(0, TOPICS, documents)
    return np.eye(16)[topic] + noise * rng.normal(size=(documents, 16)), topic


def distances(embeddings: np.ndarray, norm: float | None = None) -> np.ndarray:
    unit = embeddings / (norm or np.linalg.norm(embeddings, axis=1, keepdims=True))
    return 1 - unit @ unit.T


def same_topic(packs, topic: np.ndarray) -> float:
    """How often two documents of a pack have the same topic."""
    pairs = [topic[doc][:, None] == topic[doc] for doc, _, _ in packs]
    return float(np.mean([(pair.sum() - len(pair)) / (len(pair) * (len(pair) - 1)) for pair in pairs if len(pair) > 1]))


def naive_path(embeddings: np.ndarray, threshold: float, window: int) -> list[int]:
    """The definition, document by document."""
    away = distances(np.rint(2048 * embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)), 2048)
    path = [0]
    while left := [i for i in range(len(embeddings)) if i not in path]:
        last = path[-window:]
        allowed = [i for i in left if all(away[i, j] > threshold for j in last)]
        if allowed:
            path.append(min(allowed, key=lambda i: away[i, path[-1]]))
        else:
            path.append(max(left, key=lambda i: min(away[i, j] for j in last)))
    return path


@pytest.mark.parametrize(("threshold", "window"), [(0.0, 1), (0.1, 1), (0.1, 4), (0.4, 3), (1.9, 2)])
def test_the_path_is_that_of_the_definition(threshold, window):
    embeddings = topical(60, noise=0.2)[0]
    options = ThresholdFiltering(threshold=threshold, window=window)
    assert threshold_path(embeddings, np.arange(60), options).tolist() == naive_path(embeddings, threshold, window)


@given(documents=st.integers(1, 60), block=st.integers(1, 20), window=st.integers(1, 8), threshold=st.floats(0, 1.9))
def test_the_path_visits_every_document_once_whatever_the_blocks(documents, block, window, threshold):
    embeddings = np.random.default_rng(1).integers(-1, 2, (documents, 3))  # with zeros, copies and opposites
    options = ThresholdFiltering(threshold=threshold, window=window, block=block)
    done = []
    path = threshold_path(embeddings, np.arange(documents)[::-1], options, done.append)
    assert sorted(path.tolist()) == list(range(documents))
    assert path[0] == documents - 1
    assert sum(done) == documents


def test_packs_are_more_alike_than_those_of_documents_in_any_order():
    embeddings, topic = topical()
    lengths = np.random.default_rng(1).integers(5, 20, topic.size)
    assert same_topic(pack(lengths, 64, "sequential", seed=0), topic) < 0.3
    assert same_topic(pack(lengths, 64, "threshold_filtering", seed=0, embeddings=embeddings), topic) > 0.8


@pytest.mark.parametrize("block", [4096, 50])
def test_near_copies_are_kept_apart_where_there_are_others(block):
    embeddings, _ = topical(100, noise=0.3)
    rng = np.random.default_rng(2)
    embeddings = np.concatenate([embeddings, embeddings + 0.01 * rng.normal(size=embeddings.shape)])
    away = distances(embeddings)
    order = rng.permutation(200)

    def nearest_of_last(window, path):
        return [min(away[path[i], path[j]] for j in range(max(0, i - window), i)) for i in range(1, len(path))]

    unfiltered = threshold_path(embeddings, order, ThresholdFiltering(threshold=0.0, window=1))
    assert min(nearest_of_last(1, unfiltered)) < 0.01, "there are no copies to keep apart"
    path = threshold_path(embeddings, order, ThresholdFiltering(threshold=0.05, window=3, block=block))
    assert min(nearest_of_last(3, path)) > 0.049  # embeddings are rounded


def test_a_block_begins_near_where_the_last_one_ended():
    embeddings = np.stack([np.cos(np.arange(40) / 20), np.sin(np.arange(40) / 20)], axis=1)
    order = np.concatenate([np.arange(20), np.arange(39, 19, -1)])
    path = threshold_path(embeddings, order, ThresholdFiltering(threshold=0.0, window=1, block=20))
    assert path.tolist() == list(range(40))


def test_only_copies_are_still_packed():
    packs = pack([3] * 10, 6, "threshold_filtering", embeddings=np.ones((10, 2)))
    assert sorted(packs.pieces.doc.tolist()) == list(range(10))


def test_documents_with_the_same_words_are_found_without_a_model():
    rng = np.random.default_rng(0)
    topic = rng.integers(0, 4, 200)
    words = [rng.permutation(5000)[:100] for _ in range(4)]
    documents = [
        np.where(rng.random(200) < 0.5, rng.choice(words[t], 200), rng.integers(0, 20, 200)).astype(np.uint16)
        for t in topic
    ]
    embeddings = ngram_embeddings(documents, longest=1)
    assert embeddings.shape == (200, 512)
    packs = pack([200] * 200, 1600, "threshold_filtering", embeddings=embeddings)
    assert same_topic(packs, topic) > 0.9


def test_ngrams_stay_inside_documents_and_count_where_some_documents_share_them():
    a, b, c = ([7, 1, 2], [7, 1, 3], [7, 4, 1])
    embeddings = ngram_embeddings([np.array(d) for d in (a, b, c)], longest=2, dim=64)
    pair = np.log(4 / 3)  # (7, 1) is in two of three documents; 7 and 1 are in all, the others in one
    assert np.abs(embeddings).sum(axis=1).tolist() == pytest.approx([pair, pair, 0])
    assert np.array_equal(embeddings[0], embeddings[1])


def test_an_embedding_does_not_depend_on_the_documents_before_and_after():
    documents = [np.array(tokens) for tokens in ([1, 2], [3, 4], [1, 2], [3, 4], [5])]
    assert np.array_equal(ngram_embeddings(documents)[::-1], ngram_embeddings(documents[::-1]))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (None, "'threshold_filtering' needs embeddings.* packmamba.data.packers.ngram_embeddings makes one"),
        (np.ones((3, 2)), r"one row for each of the 4 documents, got shape \(3, 2\)"),
        (np.ones(4), r"one row for each of the 4 documents, got shape \(4,\)"),
        (np.array([["a"]] * 4), "must be numbers, got dtype <U1"),
        (np.array([[0.0], [1.0], [np.nan], [2.0]]), "the embedding of document 2 is not finite"),
    ],
)
def test_bad_embeddings_are_refused(embeddings, message):
    with pytest.raises(ValueError, match=message):
        pack([1] * 4, 8, "threshold_filtering", embeddings=embeddings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold must be at least 0 and below 2, got -0.1"),
        ({"threshold": 2.0}, "threshold must be at least 0 and below 2, got 2.0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"block": 0}, "block must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ThresholdFiltering(**options)
