"""Plans: every pack once, the same number of steps on every rank, targets known ahead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packmamba.data.packers import Packs, pack
from packmamba.data.plan import (
    NO_PACK,
    PlanOptions,
    imbalance,
    micro_steps_left,
    num_micro_steps,
    pack_costs,
    packs_after,
    plan_epoch,
)
from packmamba.visible_pairs import AttentionCost

LENGTHS = np.random.default_rng(0).integers(1, 50, 300)

options = st.builds(
    PlanOptions,
    seed=st.none() | st.integers(0, 5),
    world_size=st.integers(1, 5),
    accumulation=st.integers(1, 5),
    balance=st.sampled_from(["tokens", "flops", "none"]),
    attention_costs=st.sampled_from([(), (AttentionCost(cost=0.1),)]),
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


stretches = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 8)), max_size=4)


@given(documents=st.integers(1, 60), options=options, stretches=stretches, whole=st.booleans())
def test_what_some_ranks_have_left_others_share(documents, options, stretches, whole):
    """Stretches of (ranks, accumulation, micro-steps) with new ones in between, then the options to the end."""
    packs = some_packs(documents)
    options = replace(options, whole_steps=whole)
    trained: list[int] = []
    done = 0
    for ranks, accumulation, micro_steps in stretches:
        other = replace(options, world_size=ranks, accumulation=accumulation)
        plan = plan_epoch(packs, 1, other, done)
        micro_steps = min(micro_steps, len(plan.packs))
        done, still_open = packs_after(len(packs), done, micro_steps, other)
        assert still_open < accumulation
        complete = plan.packs[: micro_steps - still_open]
        trained += complete[complete != NO_PACK].tolist()
        assert len(trained) == done
    rest = plan_epoch(packs, 1, options, done)
    left = micro_steps_left(len(packs), done, options)
    assert rest.packs.shape == (left, options.world_size)
    assert sorted(trained + rest.packs[rest.packs != NO_PACK].tolist()) == list(range(len(packs)))
    first = (num_micro_steps(len(packs), options) - left) % options.accumulation
    for begin in range(-first, left, options.accumulation):
        step = slice(max(0, begin), begin + options.accumulation)
        group = rest.packs[step]
        expected = sum(int(packs.num_targets[p]) for p in group.ravel() if p != NO_PACK)
        assert (rest.step_targets[step] == expected).all()
        assert not len(group) or (group != NO_PACK).any(), "an optimiser step without any pack"
    if whole:
        assert left % options.accumulation == first == 0


@given(documents=st.integers(1, 60), options=options, micro_steps=st.integers(0, 60))
def test_a_plan_made_in_the_middle_is_the_rest_of_the_whole_one(documents, options, micro_steps):
    packs = some_packs(documents)
    whole = plan_epoch(packs, 0, options)
    micro_steps = min(micro_steps, len(whole.packs))
    done, still_open = packs_after(len(packs), 0, micro_steps, options)
    rest = plan_epoch(packs, 0, options, done)
    assert (rest.packs == whole.packs[micro_steps - still_open :]).all()
    assert (rest.step_targets == whole.step_targets[micro_steps - still_open :]).all()


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
    options = PlanOptions(seed=0, world_size=2, accumulation=3, max_micro_steps=8)
    short = plan_epoch(packs, 2, options)
    assert short.packs.shape == (8, 2)
    assert (short.packs[:6] == whole.packs[:6]).all()
    assert (short.step_targets[:6] == whole.step_targets[:6]).all()
    last = short.packs[6:]
    assert (short.step_targets[6:] == packs.num_targets[last].sum()).all(), "targets that are never trained on count"
    assert num_micro_steps(3, PlanOptions(max_micro_steps=8)) == 3
    assert (plan_epoch(packs, 2, options, done=12).packs == last).all()
    assert len(plan_epoch(packs, 2, replace(options, world_size=1), done=12).packs) == 0


def test_balance_evens_out_what_ranks_do_at_the_same_time_and_in_a_step():
    packs = pack(LENGTHS, 60, "single")

    def means(balance):
        plan = plan_epoch(packs, 0, PlanOptions(seed=0, world_size=2, accumulation=6, balance=balance))
        return [uneven.mean() for uneven in imbalance(plan, packs.size, 6)]

    (micro, step), (micro_as_they_come, step_as_they_come) = means("tokens"), means("none")
    assert micro < micro_as_they_come / 2
    assert step < step_as_they_come / 10


def test_balance_by_flops_evens_out_attention_where_packs_are_equally_full():
    packs = pack([64, *[1] * 64, *[8] * 8, *[32] * 2] * 40, 64, "sequential")
    options = PlanOptions(
        seed=0, world_size=4, accumulation=8, attention_costs=(AttentionCost(cost=0.1),), balance="flops"
    )
    costs = pack_costs(packs, options)

    def worst(balance):
        return imbalance(plan_epoch(packs, 0, replace(options, balance=balance)), costs, 8)[1].max()

    assert (packs.size == 64).all()
    assert worst("flops") < 0.06 < 0.3 < worst("tokens")


@given(
    lengths=st.lists(st.integers(1, 6) | st.integers(1, 1000), min_size=1, max_size=120),
    options=options,
    strategy=st.sampled_from(["single", "padded", "best_fit_decreasing"]),
)
def test_balance_never_makes_ranks_less_even_and_keeps_each_steps_packs(lengths, options, strategy):
    packs = pack(lengths, 1000, strategy)
    balanced, as_they_come = (plan_epoch(packs, 1, replace(options, balance=b)) for b in (options.balance, "none"))
    costs, groups = pack_costs(packs, options), range(0, len(balanced.packs), options.accumulation)

    def per_rank(plan):
        return np.where(plan.packs == NO_PACK, 0, costs[plan.packs])

    for begin in groups:
        step = slice(begin, begin + options.accumulation)
        assert sorted(balanced.packs[step].ravel()) == sorted(as_they_come.packs[step].ravel())
        ours, theirs = per_rank(balanced)[step], per_rank(as_they_come)[step]
        assert ours.sum(axis=0).max() <= theirs.sum(axis=0).max() * (1 + 1e-9), "a rank does more in the step"
        assert ours.max(axis=1).sum() <= theirs.max(axis=1).sum() * (1 + 1e-9), "micro-steps wait longer"
    again = plan_epoch(packs, 1, options)
    assert (again.packs == balanced.packs).all(), "not deterministic"


def test_ranks_keep_their_packs_where_dealing_them_anew_would_be_less_even():
    packs = pack([6, 4, 1, 2, 1, 2], 6, "single")  # each rank has 8 as they come, 9 and 7 dealt pair by pair
    plan = plan_epoch(packs, 0, PlanOptions(world_size=2, accumulation=3))
    assert packs.size[plan.packs].tolist() == [[6, 4], [1, 2], [1, 2]]


def test_the_cost_of_a_pack_counts_its_pairs_within_documents_the_window_and_filler():
    packs = pack([3, 4, 5], 8, "sequential")
    flops = PlanOptions(balance="flops", attention_costs=(AttentionCost(cost=0.5),))
    windowed = replace(flops, attention_costs=(AttentionCost(cost=0.5, window=2),))
    both = replace(flops, attention_costs=(AttentionCost(cost=0.5, window=2), AttentionCost(cost=2.0)))
    assert pack_costs(packs, PlanOptions()).tolist() == [7, 5]
    assert pack_costs(packs, flops).tolist() == [7 + 0.5 * (6 + 10), 5 + 0.5 * 15]
    assert pack_costs(packs, windowed).tolist() == [7 + 0.5 * (5 + 7), 5 + 0.5 * 9]
    assert pack_costs(packs, both).tolist() == [7 + 0.5 * (5 + 7) + 2 * (6 + 10), 5 + 0.5 * 9 + 2 * 15]
    assert pack_costs(packs, replace(flops, attention_costs=(AttentionCost(cost=0.0),))).tolist() == [7, 5]
    assert pack_costs(packs, replace(flops, attention_costs=())).tolist() == [7, 5]
    assert pack_costs(pack([3, 4], 8, "padded"), flops).tolist() == [8 + 0.5 * 20]


def test_imbalance_is_the_dearest_rank_over_the_mean():
    packs = pack([2, 6, 4, 4, 3], 6, "single")
    plan = plan_epoch(packs, 0, PlanOptions(world_size=2, accumulation=2, balance="none"))
    micro, step = imbalance(plan, packs.size, 2)
    assert micro.tolist() == [0.5, 0.0, 1.0]
    assert step.tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"accumulation": 0}, "accumulation must be at least 1, got 0"),
        ({"max_micro_steps": 0}, "max_micro_steps must be at least 1, got 0"),
        ({"balance": "time"}, "unknown balance 'time'; available: tokens, flops, none"),
        ({"attention_costs": (0.5,)}, "attention_costs must hold values of type AttentionCost, got 0.5"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlanOptions(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": -1.0}, "AttentionCost.cost must be at least 0 and finite, got -1.0"),
        ({"cost": float("nan")}, "AttentionCost.cost must be at least 0 and finite, got nan"),
        ({"cost": 0.1, "window": 0}, "AttentionCost.window must be at least 1, got 0"),
    ],
)
def test_bad_attention_costs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionCost(**arguments)
