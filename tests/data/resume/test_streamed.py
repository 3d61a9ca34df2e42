"""Streamed sources: the same documents in the same order as if they were loaded, whole epochs, exact resume."""

from __future__ import annotations

import gc
import itertools
import json
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

from packmamba.data import PackedDataModule
from packmamba.data.sources import Files, PythonDocs

DOCUMENTS = [f"document {index} " + "x" * (index * 7 % 41) for index in range(60)]


@pytest.fixture
def files(write_jsonl) -> list[str]:
    """Sixty documents in four files of different sizes."""
    bounds = [0, 7, 23, 24, 60]
    return [write_jsonl(DOCUMENTS[a:b], f"part-{a:02}.jsonl") for a, b in itertools.pairwise(bounds)]


@pytest.fixture
def make(files, cache):
    """A function that makes a data module which streams the sixty documents in sections of sixteen."""

    def make(**options) -> PackedDataModule:
        source = Files(paths=files, streaming=True)
        defaults = {"source": source, "val_fraction": 0, "capacity": 150, "section_documents": 16}
        return PackedDataModule(**(defaults | {"cache_dir": str(cache)} | options))

    return make


def texts(batch) -> list[tuple[int, str]]:
    """Document id and text of each sequence, without its EOS."""
    pieces = [bytes(x for x in piece.tolist() if x < 256).decode() for piece in batch.packing.unpack(batch.input_ids)]
    return [pair for pair in zip(batch.doc_ids.tolist(), pieces, strict=True) if pair[0] >= 0]


def epoch_of(module: PackedDataModule, epoch: int = 0) -> list[list[tuple[int, str]]]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [texts(batch) for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_documents_come_in_the_order_of_the_files_without_shuffling(make, num_workers):
    module = make(shuffle=False, strategy="sequential", num_workers=num_workers)
    assert list(itertools.chain(*epoch_of(module))) == list(enumerate(DOCUMENTS))


def test_the_order_is_that_of_the_source_when_it_is_loaded(make, files):
    options = {"shuffle": False, "strategy": "sequential"}
    loaded = make(source=Files(paths=files[::-1]), **options)
    loaded.setup()
    streamed = make(source=Files(paths=files[::-1], streaming=True), **options)
    assert list(itertools.chain(*epoch_of(streamed))) == list(itertools.chain(*epoch_of(loaded)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_has_every_document_once_and_the_next_one_another_order(make, num_workers):
    epochs = [list(itertools.chain(*epoch_of(make(num_workers=num_workers), epoch))) for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    for epoch in epochs:
        assert sorted(text for _, text in epoch) == sorted(DOCUMENTS)
        assert sorted(doc for doc, _ in epoch) == list(range(60))
    first = [{text for doc, text in epoch if doc < 7} for epoch in epochs]
    assert first[0] != first[2], "files should come in another order"


@pytest.mark.parametrize("size", [1, 15, 16, 59, 60, 61, 1000])
def test_sections_of_any_size_have_every_document(make, size):
    epoch = list(itertools.chain(*epoch_of(make(section_documents=size, capacity=40, strategy="wrapped"))))
    joined: dict[int, int] = {}
    for doc, text in epoch:
        joined[doc] = joined.get(doc, 0) + len(text)
    assert sorted(joined.values()) == sorted(map(len, DOCUMENTS))


@pytest.mark.parametrize("maximum", [1, 16, 20, 32, 1000])
def test_max_documents_takes_the_first_of_the_stream(make, maximum):
    epoch = list(itertools.chain(*epoch_of(make(max_documents=maximum))))
    assert sorted(epoch) == list(enumerate(DOCUMENTS))[:maximum]


def test_ranks_take_the_same_steps_and_share_every_document(make):
    module = make()
    options = {"world_size": 3, "accumulation": 2}
    ranks = [module._streamed_dataset(rank=rank, **options) for rank in range(3)]
    epochs = [[(key, dataset[key]) for key in dataset.keys(module.position)] for dataset in ranks]
    assert len({len(epoch) for epoch in epochs}) == 1
    assert len(epochs[0]) % 2 == 0
    documents = [doc for epoch in epochs for _, batch in epoch for doc, _ in texts(batch)]
    assert sorted(documents) == list(range(60))
    for begin in range(0, len(epochs[0]), 2):
        step = [pair for epoch in epochs for pair in epoch[begin : begin + 2]]
        assert {batch.step_targets for _, batch in step} == {sum(batch.num_targets for _, batch in step)}
        assert len({key.position.section for key, _ in step}) == 1, "an optimiser step needs two sections"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_few_sections_are_kept_and_none_when_training_ends(make, cache, num_workers):
    module = make(section_documents=2, num_workers=num_workers)
    kept = []
    for _ in module.train_dataloader():
        kept.append(len(list(cache.glob("sections/*/epoch-*"))))
    assert max(kept) <= 4 + 2 * num_workers + 3 < 30
    module.teardown("fit")
    assert not list(cache.glob("sections/*"))


def test_a_forgotten_stream_is_collected_while_any_thread_is_being_started(make, cache):
    """The garbage collector may come anywhere, also where a lock is held that waiting for a thread needs."""
    module = make()
    epoch_of(module)
    assert list(cache.glob("sections/*"))
    forgotten = [module]
    del module

    def collect() -> None:
        with getattr(threading, "_shutdown_locks_lock", nullcontext()):  # what Python < 3.13 holds then
            forgotten.clear()
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive(), "the garbage collector waits for a thread"
    assert not list(cache.glob("sections/*"))


def test_what_a_killed_run_has_left_is_deleted_and_what_a_living_one_needs_is_not(make, cache):
    dead = cache / "sections" / "dead"
    (dead / "epoch-0-section-0").mkdir(parents=True)
    (cache / "sections" / "dead.lock").touch()
    living = make()
    batches = iter(living.train_dataloader())
    next(batches)
    assert not list(cache.glob("sections/dead*"))
    other = make()
    epoch_of(other)
    other.teardown("fit")
    assert sum(len(texts(batch)) for batch in batches) > 40


def test_empty_documents_are_skipped_with_a_warning_or_refused(make, write_jsonl):
    source = Files(paths=[write_jsonl([*DOCUMENTS[:20], "", *DOCUMENTS[20:]], "hole.jsonl")], streaming=True)
    with pytest.warns(UserWarning, match=r"row 20 of Files.* is empty after tokenisation, and maybe others; they"):
        epoch = list(itertools.chain(*epoch_of(make(source=source))))
    assert sorted(text for _, text in epoch) == sorted(DOCUMENTS)
    assert 20 not in {doc for doc, _ in epoch}
    with pytest.raises(ValueError, match=r"row 20 of Files.* is empty after tokenisation; drop such rows"):
        epoch_of(make(source=source, empty_documents="error"))


def test_a_section_without_any_token_is_passed_over(make, write_jsonl):
    texts = [*DOCUMENTS[:16], *[""] * 20, *DOCUMENTS[16:]]
    source = Files(paths=[write_jsonl(texts, "holes.jsonl")], streaming=True)
    with pytest.warns(UserWarning, match="row 16 of"):
        epoch = list(itertools.chain(*epoch_of(make(source=source))))
    assert sorted(text for _, text in epoch) == sorted(DOCUMENTS)
    with pytest.raises(ValueError, match=r"row 16 of Files.* is empty after tokenisation; drop such rows"):
        epoch_of(make(source=source, empty_documents="error"))
    nothing = Files(paths=[write_jsonl([""] * 40, "nothing.jsonl")], streaming=True)
    with pytest.raises(ValueError, match="no document with a token"):
        epoch_of(make(source=nothing))


def test_conversations_stream_with_the_targets_that_they_have_when_loaded(make, write_jsonl):
    rows = [{"q": f"question {index}", "a": "yes " * (index % 7 + 1)} for index in range(40)]
    paths = {"paths": [write_jsonl(rows, "q.jsonl")], "prompt_column": "q", "completion_column": "a"}
    options = {"strategy": "sequential", "shuffle": False, "section_documents": 1000}
    loaded, streamed = (make(source=Files(**paths, streaming=streaming), **options) for streaming in (False, True))
    loaded.setup()
    pairs = list(zip(loaded.train_dataloader(), streamed.train_dataloader(), strict=True))
    for one, other in pairs:
        assert one.labels.tolist() == other.labels.tolist()
        assert one.step_targets == other.step_targets == int((one.labels >= 0).sum())
    assert sum(one.num_targets for one, _ in pairs) < sum(one.num_tokens for one, _ in pairs) / 2


def test_other_columns_and_formats_stream_too(make, tmp_path: Path):
    from datasets import Dataset

    Dataset.from_dict({"body": DOCUMENTS, "id": list(range(60))}).to_parquet(tmp_path / "p.parquet")
    module = make(source=Files(paths=[str(tmp_path / "p.parquet")], column="body", streaming=True), shuffle=False)
    assert sorted(itertools.chain(*epoch_of(module))) == list(enumerate(DOCUMENTS))
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"the file {name}\n")
    module = make(source=Files(paths=[str(tmp_path / "?.txt")], streaming=True), shuffle=False)
    assert sorted(itertools.chain(*epoch_of(module))) == [(0, "the file a.txt\n"), (1, "the file b.txt\n")]


def test_an_unreadable_row_far_down_stops_training_and_is_named(make, tmp_path: Path):
    lines = [json.dumps({"text": text}) for text in DOCUMENTS]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, '{"text": ', *lines]))
    with pytest.raises(ValueError, match=r"cannot read .*bad.jsonl.*line 61"):
        epoch_of(make(source=Files(paths=[str(tmp_path / "bad.jsonl")], streaming=True)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"section_documents": 0}, "section_documents must be at least 1, got 0"),
        ({"val_fraction": 0.1}, r"val_fraction 0.1 is a part of a stream.*set val_source, or val_fraction=0"),
        (
            {"val_source": Files(paths=["a.jsonl"], streaming=True)},
            r"val_source Files\(.*cannot be streamed.*set its streaming to false",
        ),
        ({"embeddings": "e.npy"}, "embeddings='e.npy' name rows of a source that is read whole"),
    ],
)
def test_options_that_do_not_go_with_a_stream_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_streams_that_cannot_be_opened_say_why(make, write_jsonl, tmp_path: Path):
    numbers = write_jsonl([{"text": 1}], "numbers.jsonl")
    (tmp_path / "empty.jsonl").touch()
    for source, error, message in [
        (Files(paths=[numbers], streaming=True), ValueError, "column 'text' of the files .* holds int64, not text"),
        (Files(paths=[numbers], column="body", streaming=True), ValueError, "no column 'body'; its columns: text"),
        (Files(paths=["nowhere/*"], streaming=True), FileNotFoundError, "no file matches 'nowhere/"),
        (Files(paths=[str(tmp_path / "empty.jsonl")], streaming=True), ValueError, "are empty; there has to be"),
    ]:
        with pytest.raises(error, match=message):
            epoch_of(make(source=source))


def test_sources_that_cannot_be_streamed_say_which_can():
    with pytest.raises(ValueError, match="PythonDocs cannot be streamed; Files, HubDataset and mixtures of them can"):
        PythonDocs().stream()


def test_what_needs_all_documents_says_that_there_is_a_stream(make):
    module = make()
    module.setup()
    for use in (module.documents, module.packs, module.dataset):
        with pytest.raises(ValueError, match=r"the training documents are streamed.*train_dataloader\(\)"):
            use("train")
    with pytest.raises(ValueError, match="no test documents: set test_source"):
        module.test_dataloader()
    with pytest.raises(TypeError, match="not known ahead"):
        len(module.train_dataloader())


def test_a_plain_python_loop_resumes_in_the_middle_of_a_section(make):
    whole = epoch_of(make(), 1)
    module = make()
    module.seek(1, packs=1, section=2)
    rest = [texts(batch) for batch in module.train_dataloader()]
    assert rest == whole[-len(rest) :]
    assert 0 < len(rest) < len(whole) / 2
