"""Resuming with a Trainer: the documents trained on after a resume are those the uninterrupted run trains on."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

import lightning.pytorch as pl
import torch

from packmamba.data import PackedDataModule
from packmamba.data.position import Position
from packmamba.data.resume.progress import TrainingProgress
from packmamba.data.sources import Files
from packmamba.data.text.tokenizers import ByteTokenizer
from tests.data.resume.runs import (
    QUIET,
    RUNS,
    Batch,
    Recorder,
    SaveEverywhere,
    documents_of,
    train,
    train_as_ranks,
    trainer,
)

pytestmark = [pytest.mark.slow, *QUIET]


@pytest.fixture
def data(sixty_documents, cache):
    """A function that makes a data module with 15 batches an epoch."""
    defaults = {"source": Files(paths=[sixty_documents]), "capacity": 120, "cache_dir": str(cache)}
    return lambda **options: PackedDataModule(**(defaults | options))


@pytest.fixture
def as_ranks(data, tmp_path, monkeypatch):
    return functools.partial(train_as_ranks, data, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        *RUNS,
        pytest.param({"limit_val_batches": 0}, id="no-validation"),
        pytest.param({"limit_train_batches": 7, "accumulate_grad_batches": 2}, id="short-epochs"),
        pytest.param({"limit_train_batches": 1, "max_epochs": 5}, id="one-batch-epochs"),
        pytest.param({"limit_train_batches": 0.5}, id="half-epochs"),
        pytest.param({"max_epochs": -1, "max_steps": 21}, id="max-steps"),
        pytest.param({"max_epochs": 2, "max_steps": 40}, id="max-epochs-and-steps"),
        pytest.param({"max_epochs": -1, "max_steps": 40, "val_check_interval": 17}, id="validating-over-epochs"),
    ],
)
def test_a_resumed_run_trains_on_the_documents_of_the_uninterrupted_one(data, tmp_path, options):
    """From a checkpoint after every fourth batch, and after every validation, epoch and run.

    Where that is in the middle of an optimiser step, from the step's beginning: gradients are not in the checkpoint.
    """
    whole, saved = train(data, tmp_path, **options)
    moments = list(saved.items())
    chosen = [item for i, item in enumerate(moments) if item[1][0] != "batch" or i % 4 == 1]
    assert len(chosen) > 6
    for path, (moment, seen) in chosen:
        resumed, _ = train(data, tmp_path, checkpoint=path, **options)
        assert resumed == whole[seen:], f"after {seen} batches ({moment})"


def test_an_epoch_trains_on_every_document_once_and_the_next_in_another_order(data, tmp_path):
    whole, _ = train(data, tmp_path)
    module = data()
    module.setup()
    steps = len(module.dataset("train"))
    epochs = [whole[begin : begin + steps] for begin in range(0, 3 * steps, steps)]
    assert len(whole) == 3 * steps
    for epoch in epochs:
        assert sorted(doc for docs, _ in epoch for doc in docs) == module.documents("train").rows.tolist()
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(("limit", "steps_an_epoch"), [(1, 1), (7, 2), (0.5, 2), (1.0, 4)])
def test_step_targets_are_those_of_the_batches_that_lightning_accumulates(data, limit, steps_an_epoch):
    class Targets(Recorder):
        def on_train_start(self):
            self.steps: list[tuple[set[int], int]] = [(set(), 0)]

        def training_step(self, batch, batch_idx):
            announced, trained = self.steps[-1]
            self.steps[-1] = announced | {batch.step_targets}, trained + batch.num_targets
            return super().training_step(batch, batch_idx)

        def on_before_optimizer_step(self, optimizer):
            self.steps.append((set(), 0))

    model = Targets()
    trainer(max_epochs=2, accumulate_grad_batches=4, limit_train_batches=limit).fit(model, datamodule=data())
    steps = [(announced, trained) for announced, trained in model.steps if announced]
    assert len(steps) == 2 * steps_an_epoch
    for announced, trained in steps:
        assert announced == {trained}


def test_prefetching_workers_do_not_count_as_trained(data, tmp_path):
    whole, saved = train(data, tmp_path, max_epochs=2)
    with_workers, saved_with_workers = train(data, tmp_path, max_epochs=2, num_workers=2)
    assert with_workers == whole
    for path, (moment, seen) in list(saved_with_workers.items())[3::15]:
        for num_workers in (0, 2):
            resumed, _ = train(data, tmp_path, checkpoint=path, num_workers=num_workers, max_epochs=2)
            assert resumed == whole[seen:], f"after {seen} batches ({moment}), {num_workers} workers"
    assert [v[1] for v in saved.values()] == [v[1] for v in saved_with_workers.values()]


def test_a_run_that_max_steps_stopped_goes_on_in_the_middle_of_its_epoch(data, tmp_path):
    whole, _ = train(data, tmp_path, max_epochs=-1, max_steps=40)
    _, saved = train(data, tmp_path, max_epochs=-1, max_steps=21)
    for path, (moment, seen) in list(saved.items())[-3:]:
        resumed, _ = train(data, tmp_path, checkpoint=path, max_epochs=-1, max_steps=40)
        assert resumed == whole[seen:], f"after {seen} batches ({moment})"


def test_a_run_that_max_epochs_stopped_goes_on_with_the_next_epoch(data, tmp_path):
    whole, _ = train(data, tmp_path, max_epochs=2)
    _, saved = train(data, tmp_path, max_epochs=1, val_check_interval=4)
    last = list(saved.items())[-4:]
    assert [moment for _, (moment, _) in last] == ["batch", "validation", "epoch", "end"]
    for path, (moment, seen) in last:
        resumed, _ = train(data, tmp_path, checkpoint=path, max_epochs=2)
        assert resumed == whole[seen:], moment


def test_the_check_sees_a_run_that_starts_its_epoch_again(data, tmp_path, monkeypatch):
    whole, saved = train(data, tmp_path, max_epochs=1)
    path, (_, seen) = list(saved.items())[4]
    monkeypatch.setattr(TrainingProgress, "start", lambda self: Position())
    resumed, _ = train(data, tmp_path, checkpoint=path, max_epochs=1)
    assert resumed != whole[seen:]


def test_the_saved_position_counts_packs_of_complete_steps(data, tmp_path):
    whole, saved = train(data, tmp_path, accumulate_grad_batches=2, max_epochs=2)
    for path, (moment, learned) in saved.items():
        state = torch.load(path, weights_only=True)["PackedDataModule"]
        assert (state["epoch"], state["packs"]) == divmod(learned, len(whole) // 2), moment
        assert (state["section"], state["batches"]) == (0, learned), moment


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 130}, "capacity was 120 and is 130"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"strategy": "sequential"}, "strategy was 'best_fit_decreasing' and is 'sequential'"),
        ({"tokenizer": ByteTokenizer(add_bos=True)}, "tokenizer was .*add_bos=False.* and is .*add_bos=True"),
        ({"val_fraction": 0.1}, "val_fraction was 0.05 and is 0.1"),
        ({"max_documents": 50}, "documents was '"),
    ],
)
def test_a_changed_option_is_named_when_resuming(data, tmp_path, change, message):
    trainer(callbacks=[SaveEverywhere(tmp_path)], max_steps=2).fit(Recorder(), datamodule=data())
    with pytest.raises(ValueError, match=f"cannot resume.*{message}"):
        trainer().fit(Recorder(), datamodule=data(**change), ckpt_path=str(tmp_path / "batch-1.ckpt"))


def test_changed_documents_are_named_when_resuming(data, tmp_path, write_jsonl):
    trainer(callbacks=[SaveEverywhere(tmp_path)], max_steps=2).fit(Recorder(), datamodule=data())
    other = Files(paths=[write_jsonl([f"other {index}" for index in range(60)], "other.jsonl")])
    with pytest.raises(ValueError, match=r"cannot resume.*documents was"):
        trainer().fit(Recorder(), datamodule=data(source=other), ckpt_path=str(tmp_path / "batch-1.ckpt"))


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 1), (4, 1)), ((2, 2), (1, 1)), ((3, 1), (2, 2)), ((2, 1), (1, 3)), ((1, 4), (3, 2)), ((1, 2), (1, 3))],
    ids=lambda pair: "{}-ranks-x-{}".format(*pair),
)
def test_other_ranks_and_accumulation_train_on_what_the_ones_before_have_left(as_ranks, data, before, after):
    """Two epochs, stopped everywhere: each document once in each epoch, and as many steps as the second one needs."""
    module = data()
    module.setup()
    every = module.documents("train").rows.tolist()
    whole, saved = as_ranks(*before, max_epochs=2)
    steps = len(as_ranks(*after, max_epochs=1)[0][0])
    moments = list(saved.items())
    for path, (moment, learned) in moments[:: max(1, len(moments) // 9)]:
        resumed, _ = as_ranks(*after, checkpoint=path, max_epochs=2)
        epoch, done = divmod(learned, len(whole[0]) // 2)
        if epoch == 2:
            assert not resumed[0], moment
            continue
        last = len(resumed[0]) - (1 - epoch) * steps
        here = documents_of(whole, learned - done, learned) + documents_of(resumed, 0, last)
        assert sorted(here) == every, f"after {learned} batches ({moment})"
        assert epoch == 1 or documents_of(resumed, last) == every, f"after {learned} batches ({moment})"


def test_a_changed_number_of_ranks_is_told(as_ranks, caplog):
    _, saved = as_ranks(2, 1, max_epochs=1)
    path, _ = list(saved.items())[2]
    with caplog.at_level("INFO"):
        as_ranks(1, 4, checkpoint=path, max_epochs=1)
    assert (
        "2 ranks x accumulate_grad_batches 1 have trained on 6 of 15 packs of epoch 0; 1 x 4 share the others"
        in caplog.text
    )


def test_ranks_may_change_more_than_once_in_an_epoch(as_ranks, data):
    module = data()
    module.setup()
    parts: list[int] = []
    checkpoint = None
    for ranks, accumulation in ((2, 1), (3, 1), (1, 2), (1, 1)):
        last = ranks == accumulation == 1
        seen, saved = as_ranks(ranks, accumulation, checkpoint=checkpoint, keep=True, max_epochs=1)
        checkpoint, (_, learned) = list(saved.items())[1]
        parts += documents_of(seen, 0, None if last else learned)
    assert sorted(parts) == sorted(module.documents("train").rows.tolist())


def test_the_same_documents_in_a_file_of_another_name_resume(data, tmp_path, sixty_documents):
    whole, saved = train(data, tmp_path, max_epochs=1)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(sixty_documents).read_bytes())
    path, (_, seen) = list(saved.items())[4]
    model = Recorder()
    trainer(max_epochs=1).fit(model, datamodule=data(source=Files(paths=[str(copy)])), ckpt_path=path)
    assert model.seen == whole[seen:]


def test_a_checkpoint_can_be_validated_on_other_data(data, tmp_path, write_jsonl):
    trainer(callbacks=[SaveEverywhere(tmp_path)], max_steps=2).fit(Recorder(), datamodule=data())
    other = data(val_source=Files(paths=[write_jsonl(["other"], "other.jsonl")]), capacity=64)
    trainer().validate(Recorder(), datamodule=other, ckpt_path=str(tmp_path / "batch-1.ckpt"), verbose=False)


def test_a_second_run_with_the_same_data_module_starts_at_the_beginning(data):
    module, first, second = data(), Recorder(), Recorder()
    trainer(max_steps=5).fit(first, datamodule=module)
    trainer(max_steps=5).fit(second, datamodule=module)
    assert first.seen == second.seen


def test_prediction_sees_every_document_once_in_order(data):
    model, module = Recorder(), data(val_fraction=0.3)
    tokens = trainer().predict(model, datamodule=module)
    assert sorted(doc for docs, _ in model.seen for doc in docs) == module.documents("predict").rows.tolist()
    assert tokens is not None
    assert sum(map(int, tokens)) == module.documents("predict").lengths.sum()


def test_training_without_validation_documents_works(data, tmp_path):
    model = Recorder()
    trainer(max_epochs=1).fit(model, datamodule=data(val_fraction=0))
    assert sorted(doc for docs, _ in model.seen for doc in docs) == list(range(60))


def test_overfitting_repeats_the_first_batches(data):
    model = Recorder()
    trainer(overfit_batches=3, max_epochs=2).fit(model, datamodule=data())
    assert model.seen[:3] == model.seen[3:]


def test_a_schedule_of_accumulation_is_refused(data):
    schedule = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    with pytest.raises(ValueError, match=r"GradientAccumulationScheduler.*accumulate_grad_batches"):
        trainer(callbacks=[schedule]).fit(Recorder(), datamodule=data())


@pytest.mark.parametrize("use_distributed_sampler", [True, False])
def test_two_ranks_share_every_document_and_resume(data, tmp_path, use_distributed_sampler):
    """Each rank as many steps as the other, with the same targets a step, whatever Lightning's sampler flag."""

    def fit(folder: Path, checkpoint: str | None = None) -> list[list[Batch]]:
        folder.mkdir()
        save = SaveEverywhere(folder)
        options = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": use_distributed_sampler}
        two = trainer(callbacks=[save], max_epochs=2, accumulate_grad_batches=2, **options)
        two.fit(Recorder(folder), datamodule=data(capacity=73, val_fraction=0), ckpt_path=checkpoint)
        return [[(docs, n) for docs, n in json.loads((folder / f"rank{rank}.json").read_text())] for rank in (0, 1)]

    whole = fit(tmp_path / "whole")
    steps = len(whole[0]) // 2
    assert len(whole[1]) == 2 * steps
    assert [targets for _, targets in whole[0]] == [targets for _, targets in whole[1]]
    for epoch in (0, steps):
        docs = [doc for rank in whole for docs, _ in rank[epoch : epoch + steps] for doc in docs if doc >= 0]
        assert sorted(docs) == list(range(60))
    assert sum(docs == [-1] for rank in whole for docs, _ in rank) == 2, "there should be an odd number of packs"
    resumed = fit(tmp_path / "resumed", str(tmp_path / "whole" / "batch-3.ckpt"))
    assert resumed == [rank[4:] for rank in whole]
