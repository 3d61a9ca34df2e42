"""Which rank trains on which pack at which micro-step: a pure function of the packs and a handful of numbers.

G ranks · A accumulated micro-batches an optimiser step · M micro-steps an epoch. NumPy only.

Every rank takes the same M = ⌈packs / G⌉ micro-steps. The packs of an epoch are put in one order that depends on the
seed and the epoch alone; an optimiser step trains on the next A · G of them, whatever A and G are. Where packs run out
in the last micro-step, the ranks without one get no pack (-1: the loader hands them a batch without targets), so that
nothing is dropped, nothing repeated, and no rank waits for another.

Between two optimiser steps, a position in an epoch is therefore one number: how many packs of its order are done. The
rest can be shared among another number of ranks, or accumulated otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from packmamba.data.packers import Packs
from packmamba.errors import UsageError, UsageTypeError
from packmamba.visible_pairs import AttentionCost, visible_pairs

Balance = Literal["tokens", "flops", "none"]

NO_PACK = -1
"""Stands for the pack of a rank when the packs of an epoch have run out."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of an epoch's plan; the packs and the epoch's number say the rest.

    Raises UsageError for a count below 1 or an unknown balance, UsageTypeError for attention costs of another type.
    """

    seed: int | None = None
    """Shuffles the packs, differently each epoch; None keeps them as they are."""
    world_size: int = 1
    """G, ranks that take different data."""
    accumulation: int = 1
    """A, micro-batches of an optimiser step on each rank; the epoch's last step may have fewer."""
    whole_steps: bool = False
    """Fill the last optimiser step with micro-steps without packs, because training goes on with other packs."""
    max_micro_steps: int | None = None
    """End the epoch after so many micro-steps; None: when every pack has been trained on."""
    balance: Balance = "tokens"
    """The quantity that ranks get even shares of within an optimiser step: `tokens`, `flops` (see `pack_costs`), or
    `none`: packs as they come."""
    attention_costs: tuple[AttentionCost, ...] = ()
    """The cost of attention, an entry for each window; only `flops` looks at it."""

    def __post_init__(self) -> None:
        for name in ("world_size", "accumulation", "max_micro_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if self.balance not in get_args(Balance):
            raise UsageError(f"unknown balance {self.balance!r}; available: {', '.join(get_args(Balance))}")
        for cost in self.attention_costs:
            if not isinstance(cost, AttentionCost):
                raise UsageTypeError(f"attention_costs must hold values of type AttentionCost, got {cost!r}")


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The rest of one epoch, for all ranks."""

    packs: np.ndarray
    """int64 (micro-steps left, G): the pack of each micro-step and rank, NO_PACK where there is none."""
    step_targets: np.ndarray
    """int64 (micro-steps left,): targets of the whole optimiser step that the micro-step belongs to, over all ranks."""


def num_micro_steps(num_packs: int, options: PlanOptions) -> int:
    """M, micro-steps of an epoch; the same for every rank and every epoch."""
    return micro_steps_left(num_packs, 0, options)


def micro_steps_left(num_packs: int, done: int, options: PlanOptions) -> int:
    """Micro-steps until the end of an epoch of which the first `done` packs are trained on.

    The others of its M count as taken: M less those left, also where other numbers of ranks have taken them.
    """
    steps = -(-max(0, packs_of_epoch(num_packs, options) - done) // options.world_size)
    return -(-steps // options.accumulation) * options.accumulation if options.whole_steps else steps


def packs_of_epoch(num_packs: int, options: PlanOptions) -> int:
    """How many packs an epoch trains on: all, unless `max_micro_steps` ends it before."""
    if options.max_micro_steps is None:
        return num_packs
    return min(num_packs, options.max_micro_steps * options.world_size)


def packs_after(num_packs: int, done: int, micro_steps: int, options: PlanOptions) -> tuple[int, int]:
    """The packs that are done when so many micro-steps have been taken since `done` were; and the micro-steps that have
    been taken since, because an optimiser step is not complete. Its packs count when it is."""
    total, left = num_micro_steps(num_packs, options), micro_steps_left(num_packs, done, options)
    taken = total - left
    complete = micro_steps
    if micro_steps < left:
        complete = max(0, (taken + micro_steps) // options.accumulation * options.accumulation - taken)
    return min(packs_of_epoch(num_packs, options), done + complete * options.world_size), micro_steps - complete


def accumulation_for(tokens: int, capacity: int, world_size: int) -> int:
    """A, the micro-batches of an optimiser step of about so many tokens, where packs are full.

    Raises UsageError where no number of micro-batches comes within a twentieth of it, naming the nearest numbers.
    """
    micro_step = capacity * world_size
    below = tokens // micro_step
    nearest = max(1, round(tokens / micro_step))
    if abs(nearest * micro_step - tokens) > 0.05 * tokens:
        near = [f"{count * micro_step:,}" for count in (below, below + 1) if count]
        raise UsageError(
            f"tokens_per_step {tokens:,} is no multiple, not even nearly, of the {micro_step:,} tokens of a micro-step "
            f"(capacity {capacity:,} x {world_size} ranks); nearest: {' or '.join(near)}"
        )
    return nearest


def plan_epoch(packs: Packs, epoch: int | tuple[int, ...], options: PlanOptions, done: int = 0) -> EpochPlan:
    """The plan of one epoch, from the first pack of its order that is not done. The same on every rank.

    epoch: a number, or a few; each shuffles differently. done: packs that are trained on, at the end of an optimiser
    step; see `packs_after`. Where ⌈M / A⌉ optimiser steps would begin elsewhere, because the packs before were shared
    otherwise, the first step is a short one.
    """
    order = np.arange(len(packs))
    if options.seed is not None:
        numbers = (epoch,) if isinstance(epoch, int) else epoch
        order = np.random.default_rng((options.seed, *numbers)).permutation(len(packs))
    ranks, accumulation = options.world_size, options.accumulation
    steps = micro_steps_left(len(packs), done, options)
    head = min(steps, (steps - num_micro_steps(len(packs), options)) % accumulation)  # completes the step at hand
    padded = head - (head - steps) // accumulation * accumulation
    slots = np.full((padded, ranks), NO_PACK, dtype=np.int64)
    trained = order[done : packs_of_epoch(len(packs), options)]
    slots.reshape(-1)[: trained.size] = trained
    if options.balance != "none":
        costs = pack_costs(packs, options)
        for part, length in ((slots[:head], head), (slots[head:], accumulation)):
            if part.size:
                part[:] = _balanced(part.reshape(-1, length, ranks), costs).reshape(part.shape)
    assigned = slots[:steps]
    targets = np.where(assigned == NO_PACK, 0, packs.num_targets[assigned]).sum(axis=1)
    begins = np.arange(head, steps, accumulation)
    if head:
        begins = np.append(0, begins)
    return EpochPlan(assigned, np.repeat(np.add.reduceat(targets, begins), np.diff(begins, append=steps)))


def pack_costs(packs: Packs, options: PlanOptions) -> np.ndarray:
    """The cost of training on each pack, (packs,), in tokens: its tokens, and where `balance` is `flops` also the
    (query, key) pairs that each kind of attention sees, times the cost of a pair. Filler of padded rows is counted."""
    costs = packs.size
    if options.balance == "flops":
        lengths = packs.pieces.length if packs.row_lengths is None else np.repeat(packs.row_lengths, packs.num_pieces)
        for attention in options.attention_costs:
            pairs = np.add.reduceat(visible_pairs(lengths, attention.window), packs.offsets[:-1])
            costs = costs + attention.cost * pairs
    return costs


def imbalance(plan: EpochPlan, costs: np.ndarray, accumulation: int) -> tuple[np.ndarray, np.ndarray]:
    """The dearest rank's cost ÷ the ranks' mean cost − 1: of each micro-step (M,), where ranks that wait for each other
    in every layer (FSDP) lose it, and of each optimiser step, where ranks that only share gradients (DDP) lose it. 0
    where no rank has a pack. plan: of a whole epoch."""
    cost = np.where(plan.packs == NO_PACK, 0.0, costs[plan.packs])
    steps = np.add.reduceat(cost, np.arange(0, len(cost), accumulation))
    micro, step = (c.max(axis=1) / np.maximum(c.mean(axis=1), np.finfo(float).tiny) for c in (cost, steps))
    return np.maximum(micro - 1, 0), np.maximum(step - 1, 0)


def _balanced(slots: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Deals each optimiser step's packs (steps, A, G) anew. Slots without a pack come in its last micro-step.

    Packs are sorted, so that those of a micro-step are alike: no other deal has a smaller sum of the micro-steps'
    dearest packs. Then, the most uneven micro-step first, the rank with the least so far takes the dearest pack. Where
    the packs as they came happen to give the ranks evener sums, each rank keeps its own and only sorts them; so neither
    sums nor micro-steps are ever less even than without balancing.
    """
    cost = np.where(slots == NO_PACK, 0, costs[slots])
    flat = slots.reshape(len(slots), -1)
    by_cost = np.argsort(-cost.reshape(flat.shape), axis=1, kind="stable")
    ranked = np.take_along_axis(flat, by_cost, axis=1).reshape(slots.shape)
    ranked_cost = np.where(ranked == NO_PACK, 0, costs[ranked])
    uneven_first = np.argsort(ranked_cost[:, :, -1] - ranked_cost[:, :, 0], axis=1, kind="stable")
    step = np.arange(len(slots))[:, None]
    sums = np.zeros((len(slots), slots.shape[2]), dtype=cost.dtype)
    dealt = np.empty_like(slots)
    for micro_step in uneven_first.T[:, :, None]:
        ranks = np.argsort(sums, axis=1, kind="stable")
        dealt[step, micro_step, ranks] = ranked[step, micro_step].reshape(sums.shape)
        sums[step, ranks] += ranked_cost[step, micro_step].reshape(sums.shape)
    own = np.take_along_axis(slots, np.argsort(-cost, axis=1, kind="stable"), axis=1)
    evener = cost.sum(axis=1).max(axis=1) < sums.max(axis=1)
    return np.where(evener[:, None, None], own, dealt)
