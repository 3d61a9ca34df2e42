"""Which rank trains on which pack at which micro-step: a pure function of the packs and a handful of numbers.

G ranks · A accumulated micro-batches an optimiser step · M micro-steps an epoch. NumPy only.

Every rank takes the same M = ⌈packs / G⌉ micro-steps. The packs of an epoch are put in one order that depends on the
seed and the epoch alone; an optimiser step trains on the next A · G of them, whatever A and G are. Where packs run out
in the last micro-step, the ranks without one get no pack (-1: the loader hands them a batch without targets), so that
nothing is dropped, nothing repeated, and no rank waits for another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from packmamba.data.packers import Packs

Balance = Literal["tokens", "none"]

NO_PACK = -1
"""What a rank gets when the packs of an epoch have run out."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What an epoch's plan depends on, beside the packs and the epoch's number.

    Raises ValueError for a count below 1 or an unknown balance.
    """

    seed: int | None = None
    """Shuffles the packs, differently each epoch; None keeps them as they are."""
    world_size: int = 1
    """G, ranks that take different data."""
    accumulation: int = 1
    """A, micro-batches of an optimiser step on each rank; the epoch's last step may have fewer."""
    max_micro_steps: int | None = None
    """End the epoch after so many micro-steps; None: when every pack has been trained on."""
    balance: Balance = "tokens"
    """`tokens`: within an optimiser step, packs of similar size run at the same time on different ranks; `none`: as
    they come."""

    def __post_init__(self) -> None:
        for name in ("world_size", "accumulation", "max_micro_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.balance not in ("tokens", "none"):
            raise ValueError(f"unknown balance {self.balance!r}; available: tokens, none")


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch, for all ranks."""

    packs: np.ndarray
    """int64 (M, G): the pack of each micro-step and rank, NO_PACK where there is none."""
    step_targets: np.ndarray
    """int64 (M,): targets of the whole optimiser step that the micro-step belongs to, over all ranks."""


def num_micro_steps(num_packs: int, options: PlanOptions) -> int:
    """M, micro-steps of an epoch; the same for every rank and every epoch."""
    steps = -(-num_packs // options.world_size)
    return steps if options.max_micro_steps is None else min(steps, options.max_micro_steps)


def plan_epoch(packs: Packs, epoch: int, options: PlanOptions) -> EpochPlan:
    """The plan of one epoch. Deterministic, and the same on every rank."""
    order = np.arange(len(packs))
    if options.seed is not None:
        order = np.random.default_rng((options.seed, epoch)).permutation(len(packs))
    ranks, accumulation = options.world_size, options.accumulation
    steps = num_micro_steps(len(packs), options)
    optimiser_steps = -(-steps // accumulation)
    slots = np.full(optimiser_steps * accumulation * ranks, NO_PACK, dtype=np.int64)
    trained = order[: steps * ranks]
    slots[: trained.size] = trained
    if options.balance == "tokens":
        slots = _balanced(slots.reshape(optimiser_steps, accumulation, ranks), packs.size)
    assigned = slots.reshape(-1, ranks)[:steps]
    targets = np.where(assigned == NO_PACK, 0, packs.num_targets[assigned]).sum(axis=1)
    begins = np.arange(0, steps, accumulation)
    return EpochPlan(assigned, np.repeat(np.add.reduceat(targets, begins), np.diff(begins, append=steps)))


def _balanced(slots: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Sorts each optimiser step (A, G) largest first, so that the packs of a micro-step are alike, and turns every
    other micro-step around, so that ranks add up to much the same. Slots without a pack come in the last micro-step."""
    steps = slots.shape[0]
    flat = slots.reshape(steps, -1)
    size = np.where(flat == NO_PACK, -1, sizes[flat])
    ranked = np.take_along_axis(flat, np.argsort(-size, axis=1, kind="stable"), axis=1).reshape(slots.shape)
    ranked[:, 1::2] = ranked[:, 1::2, ::-1].copy()
    return ranked
