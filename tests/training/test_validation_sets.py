"""Several validation sets: a loss for each, and one over all of their tokens, which best.ckpt looks at."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning")

import numpy as np
import torch

from packmamba.training.callbacks import BestCheckpoint
from packmamba.training.lit import LitHybridLM
from tests.data.resume.runs import QUIET
from tests.training.test_lit import CONFIG, Data, batch_of, documents, fit, loader, make_trainer

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You have overridden")]

LENGTHS = {"wiki": [[40, 3, 9], [25]], "code": [[12, 1]]}


class Sets(Data):
    """Two sets whose documents have the same ids."""

    val_names = tuple(LENGTHS)

    def val_dataloader(self) -> list:  # type: ignore[override]
        return [loader(self.batches(name)) for name in LENGTHS]

    @staticmethod
    def batches(name: str) -> list:
        seed = len(name) + ord(name[0])
        packs = [documents(lengths, seed=seed + index) for index, lengths in enumerate(LENGTHS[name])]
        begins = np.cumsum([0, *map(len, packs)])
        return [
            batch_of(pack, doc_ids=torch.arange(begin, begin + len(pack)))
            for pack, begin in zip(packs, begins.tolist(), strict=False)
        ]


def test_each_set_has_the_numbers_it_has_alone_and_all_tokens_make_the_monitored_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lit = LitHybridLM(CONFIG)
    lit.configure_model()
    metrics = make_trainer(tmp_path).validate(lit, Sets([]), verbose=False)[0]
    sums, targets, scored = 0.0, 0, 0
    for name in LENGTHS:
        (alone,) = make_trainer(tmp_path).validate(lit, Data([], Sets.batches(name)), verbose=False)
        for key, value in alone.items():
            assert metrics[key.replace("val/", f"val/{name}/")] == pytest.approx(value, rel=1e-6), key
        assert lit.document_losses is not None
        sums += lit.document_losses.loss_sums.sum()
        targets += lit.document_losses.targets.sum()
        scored += int((lit.document_losses.targets > 0).sum())
    assert metrics["val/loss"] == pytest.approx(sums / targets, rel=1e-6)
    assert metrics["val/documents"] == scored == 5
    assert metrics["val/loss"] != pytest.approx((metrics["val/wiki/loss"] + metrics["val/code/loss"]) / 2, rel=1e-4)


def test_the_documents_of_each_set_are_kept_apart(tmp_path: Path) -> None:
    lit = LitHybridLM(CONFIG)
    make_trainer(tmp_path).validate(lit, Sets([]), verbose=False)
    tokens = {name: losses.tokens.tolist() for name, losses in lit.losses_of_sets.items()}
    assert tokens == {"wiki": [40, 3, 9, 25], "code": [12, 1]}
    assert lit.document_losses is not None
    assert lit.document_losses.doc_ids.tolist() == [0, 1, 2, 3, 0, 1]
    make_trainer(tmp_path).validate(lit, Data([], Sets.batches("code")), verbose=False)
    assert lit.losses_of_sets == {}


def test_the_best_checkpoint_may_look_at_one_set_or_at_all(tmp_path: Path) -> None:
    best = BestCheckpoint(monitor="val/wiki/loss"), BestCheckpoint(filename="overall")
    _, recorder = fit(
        tmp_path,
        Sets([batch_of(documents([9, 5]))] * 4),
        max_steps=4,
        val_check_interval=2,
        num_sanity_val_steps=2,
        enable_checkpointing=True,
        callbacks=list(best),
    )
    for callback, name in zip(best, ("val/wiki/loss", "val/loss"), strict=True):
        assert callback.best_model_score is not None
        assert recorder.rows[-1][name] >= float(callback.best_model_score)
        assert Path(callback.best_model_path).exists()
