"""The data module: splits, batches of every strategy, loaders with and without a Trainer, bad input."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import DistributedSampler

from packmamba.data import PackedDataModule
from packmamba.data.loader import PackedDataset
from packmamba.data.packers import STRATEGIES, ThresholdFiltering
from packmamba.data.sources import DatasetFolder, Files, PythonDocs
from packmamba.data.text.tokenizers import ByteTokenizer
from packmamba.packing import PackedBatch
from packmamba.visible_pairs import AttentionCost


@pytest.fixture
def make(sixty_documents, cache):
    """A function that makes a data module over the sixty documents, ready to use."""

    def make(**options) -> PackedDataModule:
        defaults = {"source": Files(paths=[sixty_documents]), "capacity": 100, "cache_dir": str(cache)}
        module = PackedDataModule(**(defaults | options))
        module.setup()
        return module

    return make


def texts_of(path: str) -> list[str]:
    with open(path) as file:
        return [json.loads(line)["text"] for line in file]


def pieces_of(batch: PackedBatch) -> list[tuple[int, list[int]]]:
    """Document id and tokens of each sequence."""
    assert batch.doc_ids is not None
    return list(zip(batch.doc_ids.tolist(), (x.tolist() for x in batch.packing.unpack(batch.input_ids)), strict=True))


def test_batches_hold_the_documents_their_ids_name(make, sixty_documents):
    texts = texts_of(sixty_documents)
    module = make()
    seen = []
    for batch in module.dataset("train"):
        for doc, tokens in pieces_of(batch):
            assert tokens == ByteTokenizer().encode(texts[doc]).tolist()
            seen.append(doc)
        assert batch.step_targets == batch.num_targets == int((batch.labels != -100).sum())
    assert sorted(seen) == module.documents("train").rows.tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pad_to_capacity", [False, True])
def test_every_strategy_gives_every_token_once(make, sixty_documents, strategy, pad_to_capacity):
    texts = texts_of(sixty_documents)
    module = make(strategy=strategy, pad_to_capacity=pad_to_capacity, capacity=37)
    collected: dict[int, list[list[int]]] = {}
    for batch in module.dataset("train"):
        assert batch.packing.num_tokens == 37 if pad_to_capacity else batch.packing.num_tokens <= 37
        real = 0
        for (doc, tokens), labels in zip(pieces_of(batch), batch.packing.unpack(batch.labels), strict=True):
            assert labels[-1] == -100
            if doc >= 0:
                kept = int((labels != -100).sum()) + 1
                assert labels[: kept - 1].tolist() == tokens[1:kept]
                collected.setdefault(doc, []).append(tokens[:kept])
                real += kept
        assert real == batch.num_tokens
    for doc in module.documents("train").rows.tolist():
        expected = ByteTokenizer().encode(texts[doc]).tolist()
        # The pieces of a document may come in any order.
        assert sorted(itertools.chain(*collected[doc])) == sorted(expected)
        assert all("".join(map(chr, piece)) in "".join(map(chr, expected)) for piece in collected[doc])


def test_validation_takes_documents_that_training_does_not_see(make):
    module = make(val_fraction=0.2)
    train, val = module.documents("train"), module.documents("val")
    assert val.rows.size == 12
    assert sorted([*train.rows, *val.rows]) == list(range(60))
    assert np.array_equal(make(val_fraction=0.2).documents("val").rows, val.rows), "not deterministic"
    assert not np.array_equal(make(val_fraction=0.2, seed=1).documents("val").rows, val.rows)


def test_test_and_prediction_fall_back_to_the_validation_documents(make, write_jsonl):
    module = make(val_source=Files(paths=[write_jsonl(["validation"], "val.jsonl")]))
    assert module.documents("train").rows.size == 60
    for split in ("val", "test", "predict"):
        assert module.documents(split).lengths.tolist() == [11]


def test_every_split_can_have_a_source_of_its_own(make, write_jsonl):
    sources = {
        f"{split}_source": Files(paths=[write_jsonl([split], f"{split}.jsonl")]) for split in ("test", "predict")
    }
    module = make(**sources)
    assert module.documents("test").lengths.tolist() == [5]
    assert module.documents("predict").lengths.tolist() == [8]
    assert module.documents("val").rows.size == 3


def test_without_validation_documents_there_is_no_validation_loader(make):
    module = make(val_fraction=0)
    assert module.documents("train").rows.size == 60
    assert module.val_dataloader() == []
    with pytest.raises(ValueError, match="no test documents: set val_fraction above 0, or test_source"):
        module.test_dataloader()


def test_max_documents_takes_the_first_of_the_source(make):
    module = make(max_documents=10, val_fraction=0.1)
    assert sorted([*module.documents("train").rows, *module.documents("val").rows]) == list(range(10))


def test_empty_documents_are_skipped_with_a_count_or_refused(make, write_jsonl):
    source = Files(paths=[write_jsonl(["a", "", "b", ""], "holes.jsonl")])
    with pytest.warns(UserWarning, match=r"2 of 4 documents .*holes.jsonl.* are empty after tokenisation") as warnings:
        module = make(source=source, val_fraction=0)
    assert len(warnings) == 1
    assert module.documents("train").rows.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"2 of 4 documents .* the first is row 1"):
        make(source=source, val_fraction=0, empty_documents="error")


def epochs_of(dataset: PackedDataset) -> list[list[list[int]]]:
    """The document ids of each batch of the first two epochs."""
    steps = len(dataset)
    return [[dataset[key].doc_ids.tolist() for key in range(e * steps, (e + 1) * steps)] for e in (0, 1)]


def test_epochs_shuffle_the_packs_and_validation_keeps_its_order(make):
    module = make()
    dataset = module.dataset("train")
    epochs = [
        [dataset[epoch * len(dataset) + step].doc_ids.tolist() for step in range(len(dataset))] for epoch in (0, 1)
    ]
    assert epochs[0] != epochs[1]
    assert sorted(map(sorted, epochs[0])) == sorted(map(sorted, epochs[1]))
    val = make(val_fraction=0.5, shuffle=True).dataset("val")
    assert [val[key].doc_ids.tolist() for key in range(len(val))] == [
        val[key].doc_ids.tolist() for key in range(len(val), 2 * len(val))
    ]


def test_without_shuffling_documents_come_as_they_arrive(make):
    batches = make(shuffle=False, strategy="sequential", val_fraction=0).dataset("train")
    assert [doc for batch in batches for doc in batch.doc_ids.tolist()] == list(range(60))


def test_ranks_divide_the_documents_and_the_last_step_is_filled_with_empty_batches(make):
    module = make(val_fraction=0, strategy="single")
    ranks = [module.dataset("train", world_size=7, rank=rank, accumulation=2) for rank in range(7)]
    assert {len(rank) for rank in ranks} == {9}
    batches = [list(rank) for rank in ranks]
    real = [doc for rank in batches for batch in rank for doc in batch.doc_ids.tolist() if doc >= 0]
    assert sorted(real) == list(range(60))
    assert sum(batch.num_tokens == 0 for rank in batches for batch in rank) == 9 * 7 - 60
    for begin in range(0, 9, 2):
        group = [batch for rank in batches for batch in rank[begin : begin + 2]]
        assert {batch.step_targets for batch in group} == {sum(batch.num_targets for batch in group)}


def test_the_same_documents_can_be_laid_out_by_another_strategy(make):
    module = make()
    tokens = {
        s: sum(b.num_tokens for b in module.dataset("train", strategy=s)) for s in ("padded", "single", "wrapped")
    }
    assert set(tokens.values()) == {int(module.documents("train").lengths.sum())}


def test_a_plain_python_loop_goes_through_epochs_and_resumes(make):
    def ids(loader):
        return [batch.doc_ids.tolist() for batch in loader]

    module = make()
    loader = module.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(ids(loader))
    assert epochs[0] != epochs[1]

    module.seek(1, 4)
    state = module.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    loader = resumed.train_dataloader()
    loader.sampler.set_epoch(1)
    assert ids(loader) == epochs[1][4:]
    loader.sampler.set_epoch(0)
    assert ids(loader) == epochs[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(make, num_workers):
    expected = [(b.doc_ids.tolist(), b.input_ids.tolist(), b.labels.tolist()) for b in make().dataset("train")]
    loader = make(num_workers=num_workers).train_dataloader()
    for _ in range(2):
        got = [(b.doc_ids.tolist(), b.input_ids.tolist(), b.labels.tolist()) for b in loader]
        assert got == expected


def test_the_sampler_is_one_that_lightning_leaves_alone(make):
    assert isinstance(make().train_dataloader().sampler, DistributedSampler)


def test_the_vocabulary_is_known_before_any_data_is_read():
    assert PackedDataModule().vocab_size == 258


def test_using_documents_before_setup_says_what_to_call(cache):
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        PackedDataModule(cache_dir=str(cache)).dataset("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity must be from 2 tokens.*got 0"),
        ({"buffer": 0}, "buffer must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"max_documents": 0}, "max_documents must be at least 1, got 0"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1, got 1.0"),
        ({"strategy": "best"}, "unknown strategy 'best'; available: sequential"),
        ({"balance": "time"}, "unknown balance 'time'; available: tokens, flops, none"),
        ({"attention_costs": [0.5]}, "attention_costs must hold values of type AttentionCost, got 0.5"),
        ({"tokenizer_workers": -1}, "tokenizer_workers must be at least 0, got -1"),
        ({"empty_documents": "keep"}, "unknown empty_documents 'keep'; available: skip, error"),
    ],
)
def test_bad_options_are_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        PackedDataModule(**options)


def test_documents_longer_than_a_pack_are_refused_by_row_where_they_must_not_be_cut(make, write_jsonl):
    source = Files(paths=[write_jsonl(["", "ab", "abcd" * 30, "abc"], "long.jsonl")])
    module = make(source=source, val_fraction=0, long_documents="error")
    with pytest.raises(ValueError, match=r"document 2 has 121 tokens, more than the capacity of 100, as have 1 of 3"):
        module.packs("train")
    with pytest.raises(ValueError, match="'wrapped' cuts documents wherever a pack ends"):
        PackedDataModule(strategy="wrapped", long_documents="error")


def test_related_documents_come_by_a_file_of_embeddings_or_by_their_words(make, write_jsonl, tmp_path):
    topics = ["the cat sat on the mat ", "gradient descent converges "]
    source = Files(paths=[write_jsonl([topics[i % 2] + chr(97 + i // 2) for i in range(20)] + [""], "topics.jsonl")])
    np.save(tmp_path / "embeddings.npy", [[i % 2, 1 - i % 2, 0.03 * i] for i in range(21)])
    filtering = ThresholdFiltering(threshold=0.0, window=1)
    options = {"source": source, "val_fraction": 0, "strategy": "threshold_filtering", "threshold_filtering": filtering}
    for embeddings in (None, str(tmp_path / "embeddings.npy")):
        module = make(**options, embeddings=embeddings, capacity=80)
        mixed = sum(len(set((pieces.doc % 2).tolist())) > 1 for pieces in module.packs("train"))
        assert mixed <= 1, "only the pack between the two topics is mixed"
        make(**options, embeddings=embeddings, capacity=80).packs("train")  # from the cache


def test_a_file_of_embeddings_has_a_row_for_each_document_of_the_source(make, tmp_path):
    numbers = np.random.default_rng(0).random((60, 2))
    np.save(tmp_path / "embeddings.npy", numbers)
    module = make(val_fraction=0.3, embeddings=str(tmp_path / "embeddings.npy"))
    for split in ("train", "val"):
        assert np.array_equal(module.embeddings_of(split), numbers[module.documents(split).rows])


def test_the_fingerprint_holds_what_the_order_of_packs_depends_on_and_nothing_else(make, tmp_path):
    def fingerprint(**options):
        return make(**options).options.fingerprint

    np.save(tmp_path / "a.npy", np.ones((60, 2)))
    np.save(tmp_path / "b.npy", np.eye(60))
    other = {"threshold_filtering": ThresholdFiltering(threshold=0.3)}
    a, b = ({"embeddings": str(tmp_path / f"{name}.npy")} for name in "ab")
    filtering = {"strategy": "threshold_filtering"}
    assert fingerprint() == fingerprint(**other) == fingerprint(**a)
    found = [fingerprint(**filtering, **options) for options in ({}, other, a, b)]
    assert all(one != two for one, two in itertools.combinations(found, 2))
    costs = [{"attention_costs": [AttentionCost(cost=0.1, window=window)]} for window in (None, 3)]
    assert fingerprint() == fingerprint(**costs[0]) == fingerprint(**costs[1])
    flops = [fingerprint(balance="flops", **options) for options in ({}, *costs)]
    assert all(one != two for one, two in itertools.combinations(flops, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "embeddings .* there is no such file"),
        (b"1 2 3", r"cannot be read: it has to be an array of numbers, \.npy"),
        (np.ones((59, 3)), r"one row for each of the 60 documents of the source.* found \(59, 3\)"),
        (np.ones(60), r"one row of numbers for each document; found \(60,\)"),
    ],
)
def test_a_bad_file_of_embeddings_is_refused(make, tmp_path, content, message):
    file = tmp_path / "embeddings.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(strategy="threshold_filtering", embeddings=str(file)).packs("train")


def test_one_document_cannot_be_split(make, write_jsonl):
    with pytest.raises(ValueError, match=r"takes 1 of the 1 documents .*leaves none to train on; set val_source"):
        make(source=Files(paths=[write_jsonl(["alone"], "one.jsonl")]))


def test_python_docs_pack_densely(python_docs):
    _, cache = python_docs
    module = PackedDataModule(cache_dir=str(cache))
    module.prepare_data()
    module.setup("fit")
    packs = module.packs("train")
    assert packs.efficiency > 0.99
    assert packs.num_split > 0
    assert sum(batch.num_tokens for batch in module.dataset("train")) == module.documents("train").lengths.sum()


def parse(arguments: list[str]) -> PackedDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PackedDataModule, "data")
    parser.add_argument("--config", action="config")
    return parser.instantiate(parser.parse_args(arguments)).data


def test_a_config_file_picks_source_and_tokenizer_by_class_name(tmp_path):
    (tmp_path / "config.yaml").write_text(
        """
        data:
          source: {class_path: Files, init_args: {paths: [a.jsonl, b/*.jsonl], column: body}}
          val_source: {class_path: DatasetFolder, init_args: {path: saved}}
          tokenizer: {class_path: ByteTokenizer, init_args: {add_bos: true}}
          strategy: local_greedy
          capacity: 128
          threshold_filtering: {threshold: 0.3}
        """
    )
    module = parse(["--config", str(tmp_path / "config.yaml")])
    assert module.options.sources.train == Files(paths=["a.jsonl", "b/*.jsonl"], column="body")
    assert module.options.sources.val == DatasetFolder(path="saved")
    assert module.tokenizer == ByteTokenizer(add_bos=True)
    assert (module.strategy, module.capacity) == ("local_greedy", 128)
    assert module.options.packs.threshold_filtering == ThresholdFiltering(threshold=0.3)


def test_the_command_line_defaults_to_python_docs_and_bytes():
    module = parse([])
    assert module.options.sources.train == PythonDocs()
    assert module.tokenizer == ByteTokenizer()


def test_packers_import_neither_lightning_nor_datasets():
    code = "import sys, packmamba.data.packers; print([m for m in ('lightning', 'datasets') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_batches_move_and_stay_what_they_are(make):
    batch = make().dataset("train")[0]
    moved = batch.to("meta")
    assert moved.input_ids.device == torch.device("meta")
    assert moved.step_targets == batch.step_targets
