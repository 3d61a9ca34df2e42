"""Mixtures: in proportion, replayable, and nothing twice unless asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

from datasets import Dataset

from packmamba.data import PackedDataModule
from packmamba.data.sources import DatasetFolder, Files, Mixture, PythonDocs


@pytest.fixture
def source(tmp_path):
    """A function that makes a source of so many documents, `a0 a1 ...`."""

    def make(letter: str, count: int) -> DatasetFolder:
        folder = tmp_path / f"{letter}{count}"
        Dataset.from_dict({"text": [f"{letter}{index}" for index in range(count)]}).save_to_disk(folder)
        return DatasetFolder(path=str(folder))

    return make


def test_documents_come_in_the_proportion_of_the_weights(source, cache):
    mixture = Mixture(sources=[source("a", 3000), source("b", 3000)], weights=[6, 2])
    texts = mixture.load(cache)["text"][:]
    assert 0.72 < sum(text[0] == "a" for text in texts) / len(texts) < 0.78


def test_the_order_within_a_source_is_kept_and_no_document_comes_twice(source, cache):
    texts = Mixture(sources=[source("a", 30), source("b", 90)], weights=[1, 1]).load(cache)["text"][:]
    for letter, most in (("a", 30), ("b", 90)):
        own = [text for text in texts if text[0] == letter]
        assert own == [f"{letter}{index}" for index in range(len(own))]
        assert len(own) <= most
    assert texts[-1] in ("a29", "b89"), "the mixture ends with the first source that runs out"


def test_until_all_are_exhausted_every_document_comes(source, cache):
    sources = [source("a", 10), source("b", 90)]
    texts = Mixture(sources=sources, weights=[1, 1], stopping_strategy="all_exhausted").load(cache)["text"][:]
    assert len(set(texts)) == 100
    assert texts.count("a0") > 5


def test_a_seed_gives_the_same_mixture_again_and_another_seed_another(source, cache):
    sources = [source("a", 50), source("b", 50)]
    first, again = (Mixture(sources=sources, weights=[1, 1]).load(cache) for _ in range(2))
    assert first["text"][:] == again["text"][:]
    assert first._fingerprint == again._fingerprint, "the texts would be hashed again at every start"
    assert Mixture(sources=sources, weights=[1, 1], seed=1).load(cache)["text"][:] != first["text"][:]


def test_mixtures_nest(source, cache):
    inner = Mixture(sources=[source("a", 50), source("b", 50)], weights=[1, 1])
    texts = Mixture(sources=[inner, source("c", 50)], weights=[2, 1]).load(cache)["text"][:]
    assert {text[0] for text in texts} == {"a", "b", "c"}


def test_text_and_conversations_mix_into_rows_of_one_kind_each(source, write_jsonl, cache):
    chat = Files(paths=[write_jsonl([{"q": "why", "a": "because"}] * 20)], prompt_column="q", completion_column="a")
    mixed = Mixture(sources=[source("a", 20), chat], weights=[1, 1]).load(cache)
    kinds = {tuple(value is not None for value in row.values()) for row in mixed}
    assert mixed.column_names == ["text", "prompt", "completion"]
    assert kinds == {(True, False, False), (False, True, True)}


def test_messages_with_other_fields_do_not_mix(write_jsonl, cache):
    message = {"role": "user", "content": "hi"}
    sources = [
        Files(paths=[write_jsonl([{"messages": [message | more]}], name)], messages_column="messages")
        for name, more in (("a.jsonl", {}), ("b.jsonl", {"name": "Ann"}))
    ]
    with pytest.raises(ValueError, match="columns of a mixture's sources do not fit together"):
        Mixture(sources=sources, weights=[1, 1]).load(cache)


def rows_of(stream, skip: int = 0) -> list[dict]:
    return [row for table in stream.tables([0], skip) for row in table.to_pylist()]


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize(
    ("sizes", "weights"),
    [([20, 30], [1, 1]), ([1200, 30], [1, 1]), ([700, 600, 9], [5, 3, 1])],
    ids=["small", "one-is-short", "over-a-thousand"],
)
@pytest.mark.slow
def test_a_streamed_mixture_is_the_mixture(write_jsonl, cache, sizes, weights, strategy):
    paths = [write_jsonl([f"{part} {row}" for row in range(size)], f"{part}.jsonl") for part, size in enumerate(sizes)]
    streamed, whole = (
        Mixture(
            sources=[Files(paths=[path], streaming=streaming) for path in paths],
            weights=weights,
            stopping_strategy=strategy,
            seed=3,
        )
        for streaming in (True, False)
    )
    assert streamed.streaming
    assert not whole.streaming
    expected = whole.load(cache).to_list()
    for skip in (0, 1, len(expected) // 2, len(expected)):
        assert rows_of(streamed.stream(), skip) == expected[skip:]


def test_a_streamed_mixture_may_hold_text_and_conversations(write_jsonl, cache):
    text = Files(paths=[write_jsonl(["plain"] * 20, "text.jsonl")], streaming=True)
    chat = {"prompt_column": "q", "completion_column": "a", "streaming": True}
    talk = Files(paths=[write_jsonl([{"q": "why", "a": "so"}] * 20, "chat.jsonl")], **chat)
    mixture = Mixture(sources=[text, talk], weights=[1, 1])
    whole = Mixture(sources=[replace(part, streaming=False) for part in (text, talk)], weights=[1, 1])
    assert rows_of(mixture.stream()) == whole.load(cache).to_list()
    module = PackedDataModule(source=mixture, val_fraction=0, section_documents=8, cache_dir=str(cache))
    module.setup()
    ends = [
        int(batch.input_ids[end - 1]) for batch in module.train_dataloader() for end in batch.packing.cu_seqlens[1:]
    ]
    assert len(ends) == len(whole.load(cache))


def test_a_mixture_is_streamed_whole_or_not_at_all(write_jsonl, cache):
    files = Files(paths=[write_jsonl(["a"])], streaming=True)
    with pytest.raises(ValueError, match=r"streams, or none; Files\(.*\) is streamed, PythonDocs\(\) is not streamed"):
        Mixture(sources=[files, PythonDocs()], weights=[1, 1]).load(cache)


TWO = [PythonDocs(), PythonDocs()]
WRONG = {
    "too-few-weights": ({"weights": [1]}, "one weight a source, got 1 weights for 2 sources"),
    "too-many-weights": ({"weights": [1, 1, 1]}, "one weight a source, got 3 weights for 2 sources"),
    "zero": ({"weights": [1, 0]}, "positive numbers, got 0 for source 1"),
    "negative": ({"weights": [-0.5, 1]}, r"positive numbers, got -0\.5 for source 0"),
    "infinite": ({"weights": [1, float("inf")]}, "positive numbers, got inf for source 1"),
    "one-source": ({"sources": TWO[:1], "weights": [1]}, "at least two sources, got 1"),
    "strategy": ({"weights": [1, 1], "stopping_strategy": "never"}, "unknown stopping_strategy 'never'; available: fi"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_weights_that_cannot_be_used_say_why(cache, fields, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**{"sources": TWO, **fields}).load(cache)


def test_a_part_of_a_mixture_that_repeats_documents_cannot_be_held_out(source):
    repeating = Mixture(sources=TWO, weights=[1, 1], stopping_strategy="all_exhausted")
    nested = Mixture(sources=[PythonDocs(), repeating], weights=[1, 1])
    for mixture in (repeating, nested):
        with pytest.raises(ValueError, match=r"would validate on documents that are trained on, .*set val_source"):
            PackedDataModule(source=mixture)
        PackedDataModule(source=mixture, val_fraction=0)
        PackedDataModule(source=mixture, val_source=PythonDocs())


def test_the_title_of_a_source_is_no_python_expression() -> None:
    files = Files(paths=["a.jsonl", "b.jsonl"], column="body")
    assert files.title == "Files: a.jsonl, b.jsonl"
    assert PythonDocs().title == "PythonDocs"
    mixed = Mixture(sources=[files, PythonDocs()], weights=[1.0, 2.0])
    assert mixed.title == "Mixture: Files: a.jsonl, b.jsonl, PythonDocs"


def test_it_says_which_documents_no_epoch_has(source, cache, monkeypatch):
    said = []
    monkeypatch.setattr("packmamba.data.sources.mixture.rank_zero_info", said.append)
    few, many = source("a", 5), source("b", 400)
    texts = Mixture(sources=[few, many], weights=[1, 1]).load(cache)["text"][:]
    left = 400 - sum(text[0] == "b" for text in texts)
    assert said == [
        f"mixture: {len(texts)} documents an epoch, which ends when the first source runs out; never seen are {left} "
        f"of the 400 documents of {many} (stopping_strategy: all_exhausted repeats the others instead)"
    ]
    Mixture(sources=[few, many], weights=[1, 1], stopping_strategy="all_exhausted").load(cache)
    assert len(said) == 1
