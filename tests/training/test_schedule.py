"""The learning rate: its formula, the rate that each step uses, and the step at which it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from packmamba.training.lit import LitHybridLM, learning_rate_factor
from tests.training.test_lit import CONFIG, Data, batch_of, documents, fit, loader, make_trainer


class TestSchedule:
    def test_warms_up_linearly_then_follows_a_cosine_to_the_minimum(self) -> None:
        factors = [learning_rate_factor(s, warmup_steps=4, decay_steps=12, min_ratio=0.1) for s in range(14)]
        assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
        assert factors[4] == pytest.approx(1.0)
        assert factors[8] == pytest.approx(0.55)
        assert factors[12:] == pytest.approx([0.1, 0.1])
        assert factors[4:] == sorted(factors[4:], reverse=True)

    @pytest.mark.parametrize(("warmup", "decay"), [(0, 10), (5, 5), (20, 10)])
    def test_odd_lengths_stay_between_zero_and_one(self, warmup: int, decay: int) -> None:
        factors = [learning_rate_factor(s, warmup_steps=warmup, decay_steps=decay, min_ratio=0.1) for s in range(30)]
        assert all(0 < factor <= 1 for factor in factors)

    def test_the_logged_rate_is_the_one_the_step_used(self, tmp_path: Path) -> None:
        _, recorder = fit(tmp_path, Data([batch_of(documents([9, 5]))]), max_steps=4)
        expected = [
            1e-3 * learning_rate_factor(step, warmup_steps=2, decay_steps=4, min_ratio=0.1) for step in range(4)
        ]
        assert [row["lr"] for row in recorder.rows] == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("options", "last_step"),
        [
            ({"max_steps": 5}, 5),
            ({"max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 2}, 6),
            ({"max_steps": -1, "max_epochs": 2, "limit_train_batches": 2}, 4),
            ({"max_steps": 4, "max_epochs": 3}, 4),
            ({"max_steps": 40, "max_epochs": 3}, 9),
        ],
    )
    def test_the_last_step_of_the_trainer_has_the_lowest_rate(
        self, tmp_path: Path, options: dict[str, Any], last_step: int
    ) -> None:
        batches = [batch_of(documents([9]), step_targets=16)] * 3
        _, recorder = fit(tmp_path, Data(batches), **options)
        assert len(recorder.rows) == last_step
        expected = learning_rate_factor(last_step - 1, warmup_steps=2, decay_steps=last_step, min_ratio=0.1)
        assert recorder.rows[-1]["lr"] == pytest.approx(1e-3 * expected)

    def test_without_a_last_step_it_says_what_to_set(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=1)
        with pytest.raises(ValueError, match=r"trainer.max_steps, or model.decay_steps"):
            trainer.fit(LitHybridLM(CONFIG), loader([batch_of(documents([9]))]))

    def test_decay_steps_may_end_before_the_trainer(self, tmp_path: Path) -> None:
        lit = LitHybridLM(CONFIG, decay_steps=3, warmup_steps=0)
        _, recorder = fit(tmp_path, Data([batch_of(documents([9]))] * 2), lit=lit, max_steps=5)
        assert [row["lr"] for row in recorder.rows[3:]] == pytest.approx([1e-4, 1e-4])
