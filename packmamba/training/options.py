"""The checks of LitHybridLM's options: ranges, and options that the chosen optimiser or schedule does not use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packmamba.errors import UsageError
from packmamba.training.optimizers import Optimizer
from packmamba.training.schedules import Schedule


def check_ranges(options: Mapping[str, Any]) -> None:
    """Raises UsageError for a number or a name that is not accepted. options: by their names in LitHybridLM."""
    o = options
    checks = (
        ("learning_rate", o["learning_rate"] > 0, "more than 0"),
        ("min_learning_rate_ratio", 0 <= o["min_learning_rate_ratio"] <= 1, "from 0 to 1"),
        ("warmup_steps", o["warmup_steps"] >= 0, "0 or more"),
        ("decay_steps", o["decay_steps"] is None or o["decay_steps"] > 0, "more than 0, or null"),
        ("weight_decay", o["weight_decay"] >= 0, "0 or more"),
        ("betas", len(o["betas"]) == 2 and all(0 <= beta < 1 for beta in o["betas"]), "two numbers from 0 to below 1"),
        ("eps", o["eps"] > 0, "more than 0"),
        ("on_nonfinite", o["on_nonfinite"] in ("stop", "skip"), "stop or skip"),
        ("max_skipped_steps", o["max_skipped_steps"] >= 0, "0 or more"),
    )
    for name, is_right, accepted in checks:
        if not is_right:
            raise UsageError(f"{name} must be {accepted}, got {o[name]!r}")


def check_used(
    options: Mapping[str, Any], defaults: Mapping[str, Any], optimizer: Optimizer, schedule: Schedule
) -> None:
    """Raises UsageError for an option that is not as it is by default, and that nothing would use."""
    unused = {name: f"optimizer {type(optimizer).__name__}" for name in optimizer.unused}
    unused |= {name: f"schedule {type(schedule).__name__}" for name in schedule.unused}
    if options["on_nonfinite"] == "stop":
        unused["max_skipped_steps"] = "on_nonfinite stop"
    for name, why in unused.items():
        if options[name] != defaults[name]:
            raise UsageError(
                f"model.{name} {options[name]!r} has no effect with model.{why}: leave it out, or at its default "
                f"{defaults[name]!r}"
            )
