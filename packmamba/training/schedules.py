"""Learning-rate schedules by name: Cosine, WSD, Linear, Constant; a class of your own derives from `Schedule`.

A schedule says what the peak learning rate is multiplied with at an optimiser step, counted from 0. All of them rise
linearly for `warmup_steps`, so that step warmup_steps - 1 has the peak.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from packmamba.errors import UsageError


def learning_rate_factor(step: int, *, warmup_steps: int, decay_steps: int, min_ratio: float) -> float:
    """What the peak learning rate is multiplied with at optimiser step `step` (from 0).

    Rises linearly, reaches 1 at step warmup_steps - 1, then falls along half a cosine to min_ratio at decay_steps and
    stays there.
    """
    return Cosine().factor(step, warmup_steps=warmup_steps, decay_steps=decay_steps, min_ratio=min_ratio)


class Schedule(ABC):
    """How the learning rate changes over training. One of your own is a frozen dataclass that derives from this class
    and has `after_warmup`; YAML names it by `class_path: my_module.MySchedule`."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Those of `min_learning_rate_ratio` and `decay_steps` that have no effect, and are refused if they are set."""

    def factor(self, step: int, *, warmup_steps: int, decay_steps: int, min_ratio: float) -> float:
        """What the peak learning rate is multiplied with at optimiser step `step` (from 0)."""
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return self.after_warmup(step - warmup_steps, decay_steps - warmup_steps, min_ratio)

    @abstractmethod
    def after_warmup(self, step: int, end: int, min_ratio: float) -> float:
        """The factor at a step that is counted from the end of the warm-up. end: the step from which on the factor is
        `min_ratio`, counted likewise; it may be 0 or less, where the warm-up is as long as training."""


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from the peak down to min_learning_rate_ratio at decay_steps."""

    def after_warmup(self, step: int, end: int, min_ratio: float) -> float:
        return _between(_cosine(_progress(step, end)), min_ratio)


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line from the peak down to min_learning_rate_ratio at decay_steps."""

    def after_warmup(self, step: int, end: int, min_ratio: float) -> float:
        return _between(1 - _progress(step, end), min_ratio)


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak, once the warm-up is over."""

    unused: ClassVar[tuple[str, ...]] = ("min_learning_rate_ratio", "decay_steps")

    def after_warmup(self, step: int, end: int, min_ratio: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm-up, stable, decay: the peak, then a fall to min_learning_rate_ratio at decay_steps, over the last part of
    training. A checkpoint of the stable part can be resumed with another length of training."""

    decay_fraction: float = 0.2
    """The part of decay_steps, the warm-up included, over which the rate falls."""
    decay_length: int | None = None
    """Optimiser steps over which the rate falls; null: decay_fraction of decay_steps."""
    shape: Literal["linear", "cosine", "sqrt"] = "linear"
    """How it falls: a straight line; half a cosine; or `sqrt`, 1 - sqrt(progress), fast at first (arXiv 2405.18392)."""

    def __post_init__(self) -> None:
        if not 0 < self.decay_fraction <= 1:
            raise UsageError(f"model.schedule.decay_fraction must be more than 0, 1 at most, got {self.decay_fraction}")
        if self.decay_length is not None and self.decay_length < 1:
            raise UsageError(f"model.schedule.decay_length must be 1 or more, or null, got {self.decay_length}")
        if self.decay_length is not None and self.decay_fraction != type(self).decay_fraction:
            raise UsageError(
                f"model.schedule.decay_fraction {self.decay_fraction} and decay_length {self.decay_length} both say "
                "how long the rate falls: leave one out"
            )
        if self.shape not in _SHAPES:
            raise UsageError(f"model.schedule.shape must be one of {', '.join(_SHAPES)}, got {self.shape!r}")

    def factor(self, step: int, *, warmup_steps: int, decay_steps: int, min_ratio: float) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        length = self.decay_length or max(1, round(self.decay_fraction * decay_steps))
        begin = max(warmup_steps, decay_steps - length)
        if step < begin:
            return 1.0
        return self.after_warmup(step - begin, decay_steps - begin, min_ratio)

    def after_warmup(self, step: int, end: int, min_ratio: float) -> float:
        """The factor of the fall alone, which begins at step 0."""
        return _between(_SHAPES[self.shape](_progress(step, end)), min_ratio)


def _progress(step: int, end: int) -> float:
    return min(1.0, step / max(1, end))


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _between(factor: float, min_ratio: float) -> float:
    return min_ratio + (1 - min_ratio) * factor


_SHAPES = {"linear": lambda progress: 1 - progress, "cosine": _cosine, "sqrt": lambda progress: 1 - math.sqrt(progress)}
