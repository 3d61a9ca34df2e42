"""The optimiser step by its tokens: accumulation follows from the capacity and the number of ranks."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

from packmamba.data import PackedDataModule
from packmamba.data.plan import accumulation_for
from packmamba.data.sources import Files
from packmamba.errors import UsageError
from tests.data.resume.runs import QUIET, Recorder, documents_of, train, train_as_ranks, trainer

pytestmark = QUIET


@pytest.fixture
def data(sixty_documents, cache):
    """A function that makes a data module with 15 packs."""
    defaults = {"source": Files(paths=sixty_documents), "capacity": 120, "cache_dir": str(cache)}
    return lambda **options: PackedDataModule(**(defaults | options))


@pytest.mark.parametrize(
    ("tokens", "capacity", "ranks", "accumulation"),
    [(4096, 4096, 1, 1), (65536, 4096, 4, 4), (500_000, 4096, 8, 15), (1_000_000, 4096, 8, 31), (3950, 4096, 1, 1)],
)
def test_the_nearest_number_of_packs_is_taken(tokens, capacity, ranks, accumulation):
    assert accumulation_for(tokens, capacity, ranks) == accumulation


@pytest.mark.parametrize(
    ("tokens", "said"), [(6000, "4,096 or 8,192"), (1000, "nearest: 4,096"), (9000, "8,192 or 12,288")]
)
def test_a_number_that_no_packs_come_near_is_refused_with_those_that_do(tokens, said):
    with pytest.raises(UsageError, match=rf"tokens_per_step {tokens:,} is no multiple.* 4,096 tokens .*{said}$"):
        accumulation_for(tokens, 2048, 2)


def test_a_run_accumulates_as_if_it_had_been_told_to_and_says_so(data, caplog):
    by_tokens, by_number = Recorder(), Recorder()
    with caplog.at_level("INFO"):
        trainer(max_epochs=1).fit(by_tokens, datamodule=data(tokens_per_step=360))
    assert (
        "tokens_per_step 360: accumulate_grad_batches 3 x 1 ranks x capacity 120 are 360 tokens a step where packs are"
        in caplog.text
    )
    trainer(max_epochs=1, accumulate_grad_batches=3).fit(by_number, datamodule=data())
    assert (by_tokens.seen, by_tokens.steps) == (by_number.seen, by_number.steps)


def test_a_second_fit_and_the_very_same_number_are_fine_and_another_number_is_refused(data):
    module, fitter = data(tokens_per_step=360), trainer(max_epochs=1)
    for _ in range(2):
        fitter.fit(Recorder(), datamodule=module)
    with pytest.raises(UsageError, match=r"accumulate_grad_batches 2 and data\.tokens_per_step 360 both say how large"):
        trainer(accumulate_grad_batches=2).fit(Recorder(), datamodule=data(tokens_per_step=360))


def test_other_ranks_keep_the_tokens_of_a_step_and_train_on_what_is_left(data, tmp_path, monkeypatch):
    module = data()
    module.setup()
    whole, saved = train(lambda **options: data(tokens_per_step=480, **options), tmp_path, max_epochs=1)
    path, (_, learned) = list(saved.items())[5]
    assert learned == 4
    resumed, _ = train_as_ranks(data, tmp_path, monkeypatch, 2, 2, checkpoint=path, max_epochs=1)
    by_tokens = [Recorder() for _ in range(2)]
    for rank, model in enumerate(by_tokens):
        monkeypatch.setattr("packmamba.data.datamodule.data_ranks", lambda trainer, rank=rank: (2, rank))
        trainer(max_epochs=1).fit(model, datamodule=data(tokens_per_step=480), ckpt_path=path)
    assert [model.seen for model in by_tokens] == resumed
    everything = documents_of([whole], 0, learned) + documents_of(resumed)
    assert sorted(everything) == module.documents("train").rows.tolist()


def test_it_is_refused_where_packs_are_never_full_and_below_1():
    with pytest.raises(UsageError, match="tokens_per_step counts full packs, and strategy 'single' makes none"):
        PackedDataModule(tokens_per_step=4096, strategy="single")
    with pytest.raises(UsageError, match="tokens_per_step must be at least 1, got 0"):
        PackedDataModule(tokens_per_step=0)
