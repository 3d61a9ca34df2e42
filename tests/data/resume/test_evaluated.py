"""Evaluation counts whole documents, and says or refuses what makes a checkpoint's numbers differ."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

import numpy as np

from packmamba.data import PackedDataModule
from packmamba.data.loader import PackedDataset
from packmamba.data.resume.evaluated import differences, limit_to_whole_documents, require_comparable
from packmamba.data.sources import Files
from packmamba.errors import UsageError

SAVED = {"tokenizer": "bytes", "seed": 0, "val_fraction": 0.2, "capacity": 64, "strategy": "wrapped", "shuffle": True}
DIGESTS = {"documents": "a", "chat_template": None}


@pytest.mark.parametrize(
    ("changed", "wrong", "slight"),
    [
        ({}, 0, 0),
        ({"shuffle": False}, 0, 0),
        ({"tokenizer": "bytes, add_bos"}, 1, 0),
        ({"seed": 1}, 1, 0),
        ({"val_fraction": 0.3, "seed": 1}, 2, 0),
        ({"capacity": 32}, 0, 1),
        ({"strategy": "single", "capacity": 32}, 0, 2),
    ],
)
def test_what_is_wrong_and_what_is_slightly_different(changed: dict[str, Any], wrong: int, slight: int) -> None:
    found = differences(SAVED, SAVED | changed, part_of_training=True, saved_digests=DIGESTS, digests=DIGESTS)
    assert (len(found.wrong), len(found.slight)) == (wrong, slight), found
    if wrong:
        (name, *_) = changed
        with pytest.raises(UsageError, match=rf"data\.{name} was .* and is .*--allow_other_data"):
            require_comparable(found, allowed=False)
    assert len(require_comparable(found, allowed=True)) == wrong + slight


def test_a_source_of_its_own_has_no_split_that_could_overlap() -> None:
    other = DIGESTS | {"documents": "b"}
    changed = SAVED | {"seed": 1, "val_fraction": None}
    assert differences(SAVED, changed, part_of_training=False, saved_digests=DIGESTS, digests=other) == ([], [])
    found = differences(SAVED, changed, part_of_training=False, saved_digests=DIGESTS, digests=DIGESTS)
    assert found == ([], ["these are the documents that the checkpoint was trained on"])


def test_documents_that_have_changed_and_those_of_which_none_were_held_out_are_wrong() -> None:
    other = {"documents": "b", "chat_template": None}
    found = differences(SAVED, SAVED, part_of_training=True, saved_digests=DIGESTS, digests=other)
    assert "the documents of data.source have changed" in found.wrong[0]
    found = differences(SAVED | {"val_fraction": None}, SAVED, part_of_training=True)
    assert found.wrong == ["no documents of data.source were held out from training"]
    found = differences(
        SAVED,
        SAVED,
        part_of_training=False,
        saved_digests={"documents": "a", "chat_template": "x"},
        digests={"documents": "b", "chat_template": "y"},
    )
    assert "chat_template" in found.wrong[0]


@pytest.fixture
def make(sixty_documents: str, cache: Any) -> Any:
    def make(**options: Any) -> PackedDataModule:
        defaults: dict[str, Any] = {"source": Files(paths=[sixty_documents]), "capacity": 16, "val_fraction": 0.4}
        module = PackedDataModule(**(defaults | options), cache_dir=str(cache))
        module.setup()
        return module

    return make


def tokens_by_document(dataset: PackedDataset, batches: int) -> dict[int, int]:
    """Tokens of each named document that the first batches hold."""
    tokens: dict[int, int] = {}
    for index in range(batches):
        batch = dataset[index]
        assert batch.doc_ids is not None
        lengths = np.array(batch.packing.host_lengths) if batch.real_lengths is None else batch.real_lengths.numpy()
        for doc, length in zip(batch.doc_ids.tolist(), lengths, strict=True):
            if doc >= 0:
                tokens[doc] = tokens.get(doc, 0) + int(length)
    return tokens


@pytest.mark.parametrize(("strategy", "limit"), [("wrapped", 9), ("wrapped", 0.5), ("padded", 0.5)])
def test_a_limit_of_batches_counts_whole_documents_only(make: Any, strategy: str, limit: float) -> None:
    module = make(strategy=strategy)
    dataset = module.dataset("val")
    batches = limit if isinstance(limit, int) else int(limit * len(dataset))
    documents = module.documents("val")
    lengths = dict(zip(documents.rows.tolist(), documents.lengths.tolist(), strict=True))
    before = tokens_by_document(dataset, batches)
    assert any(tokens < lengths[doc] for doc, tokens in before.items()), "nothing is cut, so nothing would be tested"
    (said,) = limit_to_whole_documents(SimpleNamespace(limit_val_batches=limit), dataset, "val")
    counted = tokens_by_document(dataset, batches)
    assert counted == {doc: tokens for doc, tokens in before.items() if tokens == lengths[doc]}
    assert said.startswith(f"trainer.limit_val_batches {limit} leaves {len(counted)} of {len(lengths)} documents whole")


def test_no_limit_and_a_limit_that_ends_nothing_leave_all(make: Any) -> None:
    dataset = make().dataset("val")
    for limit in (1.0, len(dataset), 0):
        assert limit_to_whole_documents(SimpleNamespace(limit_val_batches=limit), dataset, "val") == []
    assert limit_to_whole_documents(None, dataset, "val") == []
    assert dataset.nameless is None


def test_a_limit_without_a_whole_document_is_refused(write_jsonl: Any, cache: Any) -> None:
    path = write_jsonl(["a" * 100, "b" * 100, "c" * 100])
    module = PackedDataModule(source=Files(paths=[path]), capacity=16, val_fraction=0.4, cache_dir=str(cache))
    module.setup()
    with pytest.raises(UsageError, match=r"limit_val_batches 2 ends before any of the .* documents does"):
        limit_to_whole_documents(SimpleNamespace(limit_val_batches=2), module.dataset("val"), "val")


def test_at_most_so_many_documents_are_validated_on_and_training_is_the_same(make: Any) -> None:
    few, all_ = make(max_val_documents=5), make()
    rows = few.documents("val").rows.tolist()
    assert len(rows) == 5
    assert set(rows) < set(all_.documents("val").rows.tolist())
    assert rows == make(max_val_documents=5).documents("val").rows.tolist()
    assert few.documents("train").rows.tolist() == all_.documents("train").rows.tolist()
    assert few.documents("test").rows.tolist() == all_.documents("test").rows.tolist()
    assert few.options.fingerprint == all_.options.fingerprint
    assert tokens_by_document(few.dataset("val"), len(few.dataset("val"))).keys() == set(rows)
    assert make(max_val_documents=500).documents("val").rows.size == all_.documents("val").rows.size


def test_documents_of_one_token_each_are_refused(write_jsonl: Any, cache: Any) -> None:
    from packmamba.data.text.tokenizers import ByteTokenizer

    path = write_jsonl([json.loads(f'"{letter}"') for letter in "abcdefgh"])
    module = PackedDataModule(
        source=Files(paths=[path]), tokenizer=ByteTokenizer(add_bos=False, add_eos=False), cache_dir=str(cache)
    )
    with pytest.raises(UsageError, match=r"every train document of Files.* is a single token"):
        module.setup("fit")
