"""Schedules: the factor at each step, the rate that each step of training uses, and the step at which it ends."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from hypothesis import given
from hypothesis import strategies as st

from packmamba.errors import UsageError
from packmamba.training.lit import LitHybridLM, learning_rate_factor
from packmamba.training.schedules import WSD, Constant, Cosine, Linear, Schedule
from tests.training.test_lit import CONFIG, Data, batch_of, documents, fit, loader, make_trainer


class TestCosine:
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


class TestEverySchedule:
    SCHEDULES = st.sampled_from(
        [Cosine(), Linear(), Constant(), WSD(), WSD(decay_fraction=1.0), WSD(decay_length=3), WSD(decay_length=1)]
        + [WSD(shape=shape, decay_fraction=0.5) for shape in ("linear", "cosine", "sqrt")]
    )
    STEPS = st.integers(0, 60)

    @given(SCHEDULES, STEPS, st.integers(1, 120), st.floats(0, 1))
    def test_rises_to_the_peak_never_leaves_its_bounds_and_ends_at_the_minimum(
        self, schedule: Schedule, warmup: int, end: int, min_ratio: float
    ) -> None:
        def factor(step: int) -> float:
            return schedule.factor(step, warmup_steps=warmup, decay_steps=end, min_ratio=min_ratio)

        rising = [factor(step) for step in range(warmup)]
        assert rising == pytest.approx([(step + 1) / warmup for step in range(warmup)])
        falling = [factor(step) for step in range(warmup, warmup + end + 5)]
        assert all(min_ratio - 1e-12 <= value <= 1 + 1e-12 for value in falling)
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
        assert falling[0] == pytest.approx(1.0) or warmup >= end
        lowest = 1.0 if isinstance(schedule, Constant) else min_ratio
        assert [factor(max(end, warmup + 1) + after) for after in (0, 1, 1000)] == pytest.approx([lowest] * 3)

    @given(SCHEDULES, st.integers(0, 20))
    def test_has_no_jumps(self, schedule: Schedule, warmup: int) -> None:
        if isinstance(schedule, WSD) and schedule.decay_length is not None:
            return  # so few steps are a jump
        end = warmup + 2000
        rates = {"warmup_steps": warmup, "decay_steps": end, "min_ratio": 0.1}
        factors = [schedule.factor(step, **rates) for step in range(warmup, end + 5)]
        largest = max(abs(later - earlier) for earlier, later in pairwise(factors))
        assert largest < (0.05 if isinstance(schedule, WSD) and schedule.shape == "sqrt" else 0.01)

    def test_is_what_its_name_says(self) -> None:
        def factors(schedule: Schedule, steps: range) -> list[float]:
            return [schedule.factor(s, warmup_steps=2, decay_steps=12, min_ratio=0.5) for s in steps]

        assert factors(Linear(), range(2, 14, 5)) == pytest.approx([1.0, 0.75, 0.5])
        assert factors(Constant(), range(0, 14, 4)) == pytest.approx([0.5, 1.0, 1.0, 1.0])
        wsd = WSD(decay_length=4)
        assert factors(wsd, range(2, 15)) == pytest.approx([1.0] * 7 + [0.875, 0.75, 0.625, 0.5, 0.5, 0.5])
        assert factors(WSD(decay_fraction=1 / 3), range(15)) == factors(wsd, range(15))
        assert factors(WSD(decay_length=4, shape="sqrt"), range(9, 10)) == pytest.approx([0.75])
        assert factors(WSD(decay_length=4, shape="cosine"), range(10, 11)) == pytest.approx([0.75])

    def test_training_uses_the_named_one(self, tmp_path: Path) -> None:
        lit = LitHybridLM(CONFIG, schedule=WSD(decay_length=2), warmup_steps=1, min_learning_rate_ratio=0.0)
        _, recorder = fit(tmp_path, Data([batch_of(documents([9, 5]))]), lit=lit, max_steps=5)
        assert [row["lr"] for row in recorder.rows] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 5e-4])

    def test_a_constant_rate_needs_no_last_step(self, tmp_path: Path) -> None:
        lit = LitHybridLM(CONFIG, schedule=Constant(), warmup_steps=0)
        trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=1)
        trainer.fit(lit, loader([batch_of(documents([9]))]))
        assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"decay_fraction": 0.0}, r"decay_fraction must be more than 0, 1 at most, got 0.0"),
            ({"decay_fraction": 1.5}, r"decay_fraction must be more than 0, 1 at most, got 1.5"),
            ({"decay_length": 0}, r"decay_length must be 1 or more, or null, got 0"),
            ({"decay_length": 4, "decay_fraction": 0.5}, r"decay_fraction 0.5 and decay_length 4.*leave one out"),
            ({"shape": "steep"}, r"shape must be one of linear, cosine, sqrt, got 'steep'"),
        ],
    )
    def test_an_option_out_of_range_is_named(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            WSD(**options)

    @pytest.mark.parametrize("option", [{"decay_steps": 7}, {"min_learning_rate_ratio": 0.2}])
    def test_an_option_that_it_does_not_use_is_refused(self, option: dict[str, Any]) -> None:
        (name,) = option
        with pytest.raises(UsageError, match=rf"model.{name} .* has no effect with model.schedule Constant"):
            LitHybridLM(CONFIG, schedule=Constant(), **option)
