"""Resuming in the middle of a stream: nothing is lost, repeated or skipped, and the loader needs no length."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

from packmamba.data import PackedDataModule
from packmamba.data.resume.sections import SectionWriter
from packmamba.data.sources import Files
from packmamba.data.text.tokenizers import ByteTokenizer
from tests.data.resume.runs import QUIET, RUNS, Recorder, SaveEverywhere, documents_of, train, train_as_ranks, trainer

pytestmark = [pytest.mark.slow, *QUIET]


@pytest.fixture
def files(sixty_documents, tmp_path) -> list[str]:
    """The sixty documents in four files."""
    lines = Path(sixty_documents).read_text().splitlines(keepends=True)
    paths = [tmp_path / f"part-{number}.jsonl" for number in range(4)]
    for path, (begin, end) in zip(paths, itertools.pairwise([0, 7, 23, 24, 60]), strict=True):
        path.write_text("".join(lines[begin:end]))
    return [str(path) for path in paths]


@pytest.fixture
def data(files, cache, write_jsonl):
    """A function that makes a data module whose epoch has four sections of about five packs."""
    validation = Files(paths=[write_jsonl(["validation"] * 3, "validation.jsonl")])
    defaults = {"source": Files(paths=files, streaming=True), "val_source": validation, "capacity": 100}
    defaults |= {"section_documents": 16, "cache_dir": str(cache)}
    return lambda **options: PackedDataModule(**(defaults | options))


@pytest.mark.parametrize(
    "options",
    [
        *RUNS,
        pytest.param({"limit_train_batches": 8, "accumulate_grad_batches": 2}, id="short-epochs"),
        pytest.param({"max_epochs": -1, "max_steps": 33}, id="max-steps"),
        pytest.param({"max_epochs": 2, "max_steps": 100}, id="max-epochs-and-steps"),
    ],
)
def test_a_resumed_run_trains_on_the_documents_of_the_uninterrupted_one(data, tmp_path, options):
    """From a checkpoint after every seventh batch, and after validations, epochs and the run."""
    whole, saved = train(data, tmp_path, **options)
    moments = list(saved.items())
    kinds = {moment: [item for item in moments if item[1][0] == moment] for _, (moment, _) in moments}
    chosen = [*kinds.pop("batch")[1::7], *(item for items in kinds.values() for item in (items[0], items[-1]))]
    assert len(chosen) > 6
    for path, (moment, learned) in chosen:
        resumed, _ = train(data, tmp_path, checkpoint=path, **options)
        assert resumed == whole[learned:], f"after {learned} batches ({moment})"


def test_an_epoch_trains_on_every_document_once(data, tmp_path):
    model = Recorder()
    whole, _ = train(data, tmp_path, model=model, max_epochs=1, accumulate_grad_batches=3)
    assert documents_of([whole]) == list(range(60))
    for begin, end in itertools.pairwise([0, *model.steps]):
        assert end == begin + 3
        assert {targets for _, targets in whole[begin:end]} == {sum(model.targets[begin:end])}


def test_a_resumed_run_reads_one_section_again(data, tmp_path, monkeypatch):
    whole, saved = train(data, tmp_path, max_epochs=1)
    written = []
    write = SectionWriter._write

    def record(self, epoch, index):
        written.append(index)
        write(self, epoch, index)

    monkeypatch.setattr(SectionWriter, "_write", record)
    path, (_, learned) = list(saved.items())[-6]
    resumed, _ = train(data, tmp_path, checkpoint=path, max_epochs=1)
    assert resumed == whole[learned:]
    assert written == [3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(data, tmp_path, num_workers):
    whole, _ = train(data, tmp_path, max_epochs=2)
    with_workers, saved_with_workers = train(data, tmp_path, max_epochs=2, num_workers=2)
    assert with_workers == whole
    for path, (moment, learned) in list(saved_with_workers.items())[3::15]:
        resumed, _ = train(data, tmp_path, checkpoint=path, num_workers=num_workers, max_epochs=2)
        assert resumed == whole[learned:], f"after {learned} batches ({moment})"


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 1), (2, 1)), ((2, 2), (1, 1)), ((3, 1), (2, 2)), ((2, 1), (1, 3)), ((1, 4), (3, 2))],
    ids=lambda pair: "{}-ranks-x-{}".format(*pair),
)
def test_other_ranks_and_accumulation_train_on_what_the_ones_before_have_left(
    data, tmp_path, monkeypatch, before, after
):
    """Two epochs, stopped everywhere: each document once in each epoch, and as many steps as the second one needs."""
    whole, saved = train_as_ranks(data, tmp_path, monkeypatch, *before, max_epochs=2)
    first = len(train_as_ranks(data, tmp_path, monkeypatch, *before, max_epochs=1)[0][0])
    moments = list(saved.items())
    for path, (moment, learned) in moments[:: max(1, len(moments) // 6)]:
        resumed, _ = train_as_ranks(data, tmp_path, monkeypatch, *after, checkpoint=path, max_epochs=2)
        documents = sorted(documents_of(whole, 0, learned) + documents_of(resumed))
        assert documents == sorted([*range(60), *range(60)]), f"after {learned} batches ({moment})"
        if learned < first:
            # The last batches are those of the second epoch.
            second = next(i for i in range(len(resumed[0]), -1, -1) if len(documents_of(resumed, i)) == 60)
            assert documents_of(resumed, second) == list(range(60)), f"after {learned} batches ({moment})"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 130}, "capacity was 100 and is 130"),
        ({"section_documents": 17}, "section_documents was 16 and is 17"),
        ({"max_documents": 50}, "max_documents was None and is 50"),
        ({"tokenizer": ByteTokenizer(add_bos=True)}, "tokenizer was .*add_bos=False.* and is .*add_bos=True"),
    ],
)
def test_a_changed_option_is_named_when_resuming(data, tmp_path, change, message):
    trainer(callbacks=[SaveEverywhere(tmp_path)], max_steps=2).fit(Recorder(), datamodule=data())
    with pytest.raises(ValueError, match=f"cannot resume.*{message}"):
        trainer().fit(Recorder(), datamodule=data(**change), ckpt_path=str(tmp_path / "batch-1.ckpt"))


def test_sections_smaller_than_an_optimiser_step_are_warned_of(data):
    with pytest.warns(
        UserWarning, match=r"section of 16 documents has \d packs, fewer than the 20 of an optimiser step"
    ):
        trainer(max_steps=1, accumulate_grad_batches=20).fit(Recorder(), datamodule=data())


def test_a_stream_that_was_not_one_is_named_when_resuming(data, tmp_path, files):
    trainer(callbacks=[SaveEverywhere(tmp_path)], max_steps=2).fit(Recorder(), datamodule=data())
    with pytest.raises(ValueError, match=r"cannot resume.*streaming was True and is False"):
        loaded = data(source=Files(paths=files))
        trainer().fit(Recorder(), datamodule=loaded, ckpt_path=str(tmp_path / "batch-1.ckpt"))


def test_changed_documents_are_named_when_they_are_read(data, tmp_path, files):
    _, saved = train(data, tmp_path, max_epochs=1)
    path = list(saved)[8]
    for file in files:
        rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
        Path(file).write_text("".join(json.dumps({"text": row["text"] + "!"}) + "\n" for row in rows))
    with pytest.raises(
        ValueError, match=r"cannot resume.*documents from row 16 of the stream on was '\w+' and is '\w+'"
    ):
        train(data, tmp_path, max_epochs=1, checkpoint=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_train_batches": 5, "accumulate_grad_batches": 2}, "limit_train_batches=5 ends an epoch of a streamed"),
        ({"limit_train_batches": 0.5}, "limit_train_batches=0.5 is a part of an epoch.*set a number of batches"),
        ({"val_check_interval": 0.5}, "val_check_interval=0.5 is a part of an epoch.*set a number of batches"),
        ({"overfit_batches": 2}, "overfit_batches=2 replaces the plan's sampler, which a streamed source"),
    ],
)
def test_options_of_the_trainer_that_do_not_go_with_a_stream_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options).fit(Recorder(), datamodule=data())
