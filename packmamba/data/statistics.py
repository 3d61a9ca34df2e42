"""Statistics of a data set's lengths, and of the packs that each strategy makes of them. NumPy only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from packmamba.data.packers import Packs
from packmamba.data.plan import NO_PACK, PlanOptions, imbalance, pack_costs, plan_epoch

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def describe_lengths(lengths: np.ndarray) -> dict[str, Any]:
    """Plain values: `documents`, `tokens`, `mean`, `shortest`, `longest`, and `percentiles` by their number, each the
    length that so many percent of the documents do not exceed."""
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return {
        "documents": int(lengths.size),
        "tokens": int(lengths.sum()),
        "mean": float(lengths.mean()),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "percentiles": {str(p): int(value) for p, value in zip(PERCENTILES, values, strict=True)},
    }


@dataclass(frozen=True, kw_only=True)
class PackingReport:
    """Statistics of one strategy's packs, and of how evenly ranks share them."""

    strategy: str
    packs: int
    efficiency: float
    """Real tokens ÷ (packs · capacity)."""
    padding: float
    """See `Packs.padding_fraction`."""
    documents_split: int
    micro_step_imbalance: float
    """The largest of the first epoch's micro-steps: the dearest rank's cost ÷ the mean − 1."""
    step_imbalance: float
    """The same for whole optimiser steps."""
    seconds: float
    """Time that packing took."""


def report_packs(make: Callable[[], Packs], options: PlanOptions) -> PackingReport:
    """Times `make` and describes its packs.

    Imbalance is one of FLOPs where `options.attention_costs` are known, else of tokens, whichever the plan balances.
    Steps in which a rank has no pack, at the end of the epoch, count only where there are no others.
    """
    started = time.perf_counter()
    packs = make()
    seconds = time.perf_counter() - started
    plan = plan_epoch(packs, 0, options)
    costs = pack_costs(packs, replace(options, balance="flops"))
    micro_steps, steps = imbalance(plan, costs, options.accumulation)
    full = (plan.packs != NO_PACK).all(axis=1)
    begins = np.arange(0, full.size, options.accumulation)
    whole = np.logical_and.reduceat(full, begins) & (begins + options.accumulation <= full.size)
    return PackingReport(
        strategy=packs.strategy,
        packs=len(packs),
        efficiency=packs.efficiency,
        padding=packs.padding_fraction,
        documents_split=packs.num_split,
        micro_step_imbalance=float((micro_steps[full] if full.any() else micro_steps).max()),
        step_imbalance=float((steps[whole] if whole.any() else steps).max()),
        seconds=seconds,
    )
