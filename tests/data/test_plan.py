"""Plans: every pack once, the same number of steps on every rank, targets known ahead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.packers import Packs, pack
from packmamba.data.plan import NO_PACK, PlanOptions, num_micro_steps, plan_epoch

LENGTHS = np.random.default_rng(0).integers(1, 50, 300)

options = st.builds(
    PlanOptions,
    seed=st.none() | st.integers(0, 5),
    world_size=st.integers(1, 5),
    accumulation=st.integers(1, 5),
    balance=st.sampled_from(["tokens", "none"]),
)


def some_packs(documents: int) -> Packs:
    return pack(LENGTHS[:documents], 60)


@given(documents=st.integers(1, 60), options=options, epoch=st.integers(0, 3))
def test_every_pack_is_trained_on_once_by_one_rank(documents, options, epoch):
    packs = some_packs(documents)
    plan = plan_epoch(packs, epoch, options)
    steps = num_micro_steps(len(packs), options)
    assert plan.packs.shape == (steps, options.world_size)
    assert sorted(plan.packs[plan.packs != NO_PACK].tolist()) == list(range(len(packs)))
    assert (plan.packs[:-1] != NO_PACK).all(), "a rank idles before the last micro-step"
    assert (plan.packs != NO_PACK).any(axis=1).all(), "a micro-step has no pack at all"


@given(documents=st.integers(1, 60), options=options, epoch=st.integers(0, 3))
def test_step_targets_are_those_of_the_optimiser_step(documents, options, epoch):
    packs = some_packs(documents)
    plan = plan_epoch(packs, epoch, options)
    for begin in range(0, len(plan.packs), options.accumulation):
        group = plan.packs[begin : begin + options.accumulation]
        expected = sum(int(packs.num_targets[p]) for p in group.ravel() if p != NO_PACK)
        assert (plan.step_targets[begin : begin + options.accumulation] == expected).all()


def test_a_step_trains_on_the_same_packs_however_it_is_divided():
    """1 rank x 4 accumulated, 2 x 2 and 4 x 1 take the same documents in every optimiser step."""
    packs = some_packs(150)
    divided = [PlanOptions(seed=1, world_size=g, accumulation=4 // g) for g in (1, 2, 4)]
    steps = []
    for option in divided:
        plan = plan_epoch(packs, 0, option)
        groups = np.split(plan.packs, range(option.accumulation, len(plan.packs), option.accumulation))
        steps.append([sorted(group[group != NO_PACK].tolist()) for group in groups])
    assert steps[0] == steps[1] == steps[2]
    assert len(packs) % 4, "the last step should be an incomplete one"


def test_epochs_and_seeds_shuffle_differently_and_reproducibly():
    packs = some_packs(100)

    def order(seed, epoch):
        return plan_epoch(packs, epoch, PlanOptions(seed=seed)).packs.ravel().tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(None, 0) == order(None, 1) == list(range(len(packs)))


def test_a_shortened_epoch_is_the_beginning_of_the_whole_one():
    packs = some_packs(200)
    whole = plan_epoch(packs, 2, PlanOptions(seed=0, world_size=2, accumulation=3))
    short = plan_epoch(packs, 2, PlanOptions(seed=0, world_size=2, accumulation=3, max_micro_steps=8))
    assert short.packs.shape == (8, 2)
    assert (short.packs[:6] == whole.packs[:6]).all()
    assert (short.step_targets[:6] == whole.step_targets[:6]).all()
    last = short.packs[6:]
    assert (short.step_targets[6:] == packs.num_targets[last].sum()).all(), "targets that are never trained on count"
    assert num_micro_steps(3, PlanOptions(max_micro_steps=8)) == 3


def test_balance_evens_out_what_ranks_do_at_the_same_time():
    packs = pack(LENGTHS, 60, "single")

    def unevenness(balance):
        plan = plan_epoch(packs, 0, PlanOptions(seed=0, world_size=2, accumulation=6, balance=balance))
        sizes = packs.size[plan.packs]
        return np.abs(sizes[:, 0] - sizes[:, 1]).mean()

    assert unevenness("tokens") < unevenness("none") / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"accumulation": 0}, "accumulation must be at least 1, got 0"),
        ({"max_micro_steps": 0}, "max_micro_steps must be at least 1, got 0"),
        ({"balance": "flops"}, "unknown balance 'flops'; available: tokens, none"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlanOptions(**arguments)
