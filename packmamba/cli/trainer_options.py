"""Options of Lightning's Trainer, checked before anything is made or read.

Lightning takes many values that it fails on later, or trains with as if they were others; its own messages name what it
calls things, not the option.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch

from packmamba.errors import UsageError, did_you_mean

LARGEST = 2**63 - 1
LARGEST_SEED = 2**32 - 1
"""NumPy's, which Lightning seeds too."""
SMALL_MACHINE = 8
"""Processes on a CPU that are never too many, however few cores there are."""

_Check = tuple[Callable[[Any], bool], str]


def _whole(least: int, *, also: tuple[int, ...] = ()) -> _Check:
    others = "".join(f", or {value}" for value in also)
    return (
        lambda value: isinstance(value, int) and (least <= value <= LARGEST or value in also),
        f"a whole number from {least} to {LARGEST}{others}" if also else f"a whole number of at least {least}",
    )


def _part_of_batches(least: int) -> _Check:
    def fits(value: Any) -> bool:
        return least <= value <= LARGEST if isinstance(value, int) else 0 <= value <= 1 and (value > 0 or not least)

    return fits, f"a whole number of batches from {least} up, or a fraction {'above 0' if least else 'from 0.0'} to 1.0"


_STEPS: _Check = (
    lambda value: value == -1 or 1 <= value <= LARGEST,
    "from 1 to 2^63 - 1, or -1 for no limit",
)

_RANGES: dict[str, _Check] = {
    "max_steps": _STEPS,
    "max_epochs": _STEPS,
    "min_steps": _whole(0),
    "min_epochs": _whole(0),
    "num_nodes": _whole(1),
    "log_every_n_steps": _whole(1),
    "accumulate_grad_batches": _whole(1),
    "check_val_every_n_epoch": _whole(1),
    "num_sanity_val_steps": _whole(-1),
    "reload_dataloaders_every_n_epochs": _whole(0),
    "limit_train_batches": _part_of_batches(1),
    "limit_val_batches": _part_of_batches(0),
    "limit_test_batches": _part_of_batches(1),
    "limit_predict_batches": _part_of_batches(1),
    "overfit_batches": _part_of_batches(0),
    "val_check_interval": _part_of_batches(1),
    "fast_dev_run": (
        lambda value: isinstance(value, bool) or 0 <= value <= LARGEST,
        "true, false, or 0 or more batches",
    ),
    "gradient_clip_val": (lambda value: math.isfinite(value) and value >= 0, "0 (no clipping) or more"),
}
"""The values that each option takes where it is a number; null passes."""

_CHOICES = {
    "gradient_clip_algorithm": ("norm", "value"),
    "profiler": ("simple", "advanced", "pytorch", "xla"),
}


def check_trainer(values: Any) -> None:
    """Raises UsageError for the first option of the Trainer that cannot be used, naming it.

    values: the options by their names, as parsed; those that are not there are not looked at.
    """
    for name, (fits, accepted) in _RANGES.items():
        value = values.get(name)
        if isinstance(value, int | float) and not fits(value):
            raise UsageError(f"trainer.{name} must be {accepted}, got {value}")
    for name, choices in _CHOICES.items():
        value = values.get(name)
        if isinstance(value, str) and value not in choices:
            raise UsageError(
                f"trainer.{name} must be one of {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}"
            )
    accelerator = _checked_accelerator(values.get("accelerator"))
    _check_devices(values.get("devices"), accelerator)
    _check_strategy(values.get("strategy"), accelerator)
    if accelerator == "cpu" and str(values.get("precision")) in ("16", "16-mixed", "16-true"):
        raise UsageError(
            f"trainer.precision {values.get('precision')} does not run on the CPU; use bf16-mixed, bf16-true or 32-true"
        )


def check_least(option: str, value: int | None, least: int) -> None:
    """Raises UsageError for a number below `least`; null passes."""
    if value is not None and value < least:
        raise UsageError(f"{option} must be at least {least}, got {value}")


def check_seed(seed: Any) -> None:
    """Raises UsageError for a seed of `--seed_everything` that NumPy does not take."""
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise UsageError(
            f"seed_everything must be from 0 to {LARGEST_SEED}, true for a random one, or false, got {seed}"
        )


def _checked_accelerator(name: Any) -> str:
    """`cpu`, `cuda`, or another accelerator; what `auto` and `gpu` mean here."""
    if name is not None and not isinstance(name, str):
        return "custom"
    from lightning.pytorch.accelerators import AcceleratorRegistry

    known = sorted({"auto", "gpu", *AcceleratorRegistry.available_accelerators()})
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name not in (None, *known):
        raise UsageError(
            f"trainer.accelerator must be one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}"
        )
    if (
        (name == "cuda" and not has_cuda)
        or (name == "mps" and not has_mps)
        or (name == "gpu" and not has_cuda | has_mps)
    ):
        raise UsageError(f"trainer.accelerator {name!r}: torch finds no such device here; use cpu or auto")
    if name in (None, "auto", "gpu"):
        return "cuda" if has_cuda else "mps" if has_mps else "cpu"
    return name


def _check_devices(devices: Any, accelerator: str) -> None:
    if devices in (None, "auto") or accelerator not in ("cpu", "cuda"):
        return
    there = torch.cuda.device_count() if accelerator == "cuda" else max(SMALL_MACHINE, os.cpu_count() or 1)
    kind = "GPUs" if accelerator == "cuda" else "processes on this machine's CPUs"
    accepted = f"a number from 1 to {there} ({kind}), or auto"
    if isinstance(devices, list):
        numbers = [int(device) for device in devices if str(device).isdecimal()]
        fits = len(numbers) == len(devices) > 0 and (accelerator == "cpu" or max(numbers) < there)
    else:
        text = str(devices)
        if accelerator == "cuda" and ("," in text or text == "-1"):
            return
        fits = text.isdecimal() and 1 <= int(text) <= there
    if not fits:
        raise UsageError(f"trainer.devices must be {accepted}, got {devices}")


def _check_strategy(strategy: Any, accelerator: str) -> None:
    from lightning.pytorch.strategies import StrategyRegistry

    if not isinstance(strategy, str) or "." in strategy:
        return
    known = ["auto", *StrategyRegistry.available_strategies()]
    if strategy not in known:
        common = [name for name in ("auto", "ddp", "fsdp", "deepspeed") if name in known]
        raise UsageError(
            f"trainer.strategy must be a strategy of Lightning, such as {', '.join(common)}, got {strategy!r}"
            f"{did_you_mean(strategy, known)}"
        )
    if accelerator == "cpu" and strategy.startswith(("fsdp", "deepspeed")):
        raise UsageError(f"trainer.strategy {strategy!r} needs GPUs; on the CPU use auto or ddp")
