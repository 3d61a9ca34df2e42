"""What a resumed run has to share with its checkpoint: the model, and the optimiser with its options and schedule.

The options of the optimiser are read from its saved state, which is what training used; only what that state does not
hold, the schedule and the optimiser's class, from the checkpoint's hyper-parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from packmamba.config import ModelConfig
from packmamba.errors import UsageError
from packmamba.training.named_class import described
from packmamba.training.optimizers import AdamW
from packmamba.training.schedules import Cosine

IN_GROUPS = {"initial_lr": "learning_rate", "weight_decay": "weight_decay", "betas": "betas", "eps": "eps"}
"""Options of a torch optimiser's parameter groups, and the options of the model that they come from."""

IMPLEMENTATION = ("fused", "foreach", "capturable")
"""Options of parameter groups that say how a step is computed, which a resumed run chooses anew."""

AS_BEFORE = {"optimizer": described(AdamW()), "schedule": described(Cosine())}
"""What checkpoints used that do not name these."""


def check_same_config(stored: dict[str, Any], config: ModelConfig) -> None:
    """Raises UsageError if a checkpoint's model configuration is not `config`, naming each field with both values.

    ComputeOptions are not part of it: they say how to compute, not what, and may differ.
    """
    differences = list(_compare(ModelConfig.from_dict(stored).to_dict(), config.to_dict()))
    if differences:
        raise UsageError("the checkpoint was made with another model configuration: " + _listed(differences))


@dataclass(frozen=True)
class SavedTraining:
    """How a checkpoint was trained."""

    options: dict[str, Any]
    """The hyper-parameters of its LitHybridLM."""
    step: int
    """Optimiser steps that its schedule has taken."""
    decay_end: int | None
    """The optimiser step at which its schedule ends; None where it does not say."""

    @classmethod
    def of(cls, checkpoint: dict[str, Any], options: dict[str, Any]) -> SavedTraining:
        """checkpoint: as loaded. options: its hyper-parameters."""
        schedulers = checkpoint.get("lr_schedulers") or [{}]
        step = schedulers[0].get("last_epoch", checkpoint.get("global_step", 0))
        return cls(AS_BEFORE | options, step, checkpoint.get("decay_end"))


@dataclass(frozen=True)
class ResumedOptimizer:
    """Compares a checkpoint's optimiser with this run's when its state is loaded, and changes what may be changed."""

    saved: SavedTraining
    options: dict[str, Any]
    """The hyper-parameters of this run."""
    decay_end: int | None
    """The optimiser step at which this run's schedule ends; None: never."""
    factor: Callable[[int], float]
    """This run's schedule."""
    override: bool
    """Whether options may differ from the checkpoint's."""

    def __call__(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The state to load instead of `state`. A pre-hook of `load_state_dict`.

        Raises UsageError for options that are not the checkpoint's, naming each with both values, unless `override`.
        """
        theirs, ours = self.saved.options, self.options
        if theirs.get("decay_embeddings", False) != ours["decay_embeddings"]:
            both = "decay_embeddings", theirs.get("decay_embeddings", False), ours["decay_embeddings"]
            raise UsageError(f"a resumed run cannot change which parameters are decayed: {_listed([both])}")
        differences = list(self._differences(optimizer.param_groups, state["param_groups"]))
        if differences and not self.override:
            raise UsageError(
                f"the optimiser of the checkpoint had other options: {_listed(differences)}; set them as they were, "
                "or change them from here on with --model.override_optimizer true"
            )
        if differences:
            return self._overridden(optimizer, state, differences)
        groups = [
            saved | {name: group[name] for name in IMPLEMENTATION if name in group}
            for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
        ]
        if self.options["decay_steps"] is None and self._jump(groups):
            self._say_that_the_rate_jumps(groups)
            groups = [group | {"lr": group["initial_lr"] * self.factor(self.saved.step)} for group in groups]
        return state | {"param_groups": groups}

    def _differences(
        self, our_groups: list[dict[str, Any]], their_groups: list[dict[str, Any]]
    ) -> Iterator[tuple[str, Any, Any]]:
        theirs, ours = self.saved.options, self.options
        for name in ("optimizer", "schedule"):
            their, our = theirs[name], ours[name]
            if their["class_path"] != our["class_path"]:
                yield name, _short(their), _short(our)
            else:
                yield from _compare(their["init_args"], our["init_args"], f"{name}.")
        if self._same_optimizer:
            seen = set()
            for saved, group in zip(their_groups, our_groups, strict=True):
                for key, name in IN_GROUPS.items():
                    if key in saved and key in group and _plain(saved[key]) != _plain(group[key]) and name not in seen:
                        seen.add(name)
                        yield name, _plain(saved[key]), _plain(group[key])
        else:
            yield from ((n, theirs[n], ours[n]) for n in IN_GROUPS.values() if _plain(theirs[n]) != _plain(ours[n]))
        for name in ("warmup_steps", "min_learning_rate_ratio"):
            if name in theirs and theirs[name] != ours[name]:
                yield name, theirs[name], ours[name]
        if not self._same_end(their_groups):
            yield "decay_steps", theirs.get("decay_steps"), ours["decay_steps"]

    @property
    def _same_optimizer(self) -> bool:
        return self.saved.options["optimizer"]["class_path"] == self.options["optimizer"]["class_path"]

    def _same_end(self, their_groups: list[dict[str, Any]]) -> bool:
        """Whether `decay_steps` means what it did. An end that was not set, and moves with the length of training, is
        not a changed option; nor is its value, once it is set."""
        if self.saved.options.get("decay_steps") == self.options["decay_steps"]:
            return True
        if self.saved.decay_end is not None:
            return self.saved.decay_end == self.decay_end
        return self.saved.options.get("decay_steps") is None and not self._jump(their_groups)

    def _jump(self, their_groups: list[dict[str, Any]]) -> tuple[float, float] | None:
        """The learning rates of the next step by the checkpoint's schedule and by this run's, where they differ."""
        their, peak = their_groups[0]["lr"], their_groups[0].get("initial_lr")
        if peak is None:
            return None
        our = peak * self.factor(self.saved.step)
        return None if math.isclose(their, our, rel_tol=1e-6, abs_tol=1e-12) else (float(their), our)

    def _say_that_the_rate_jumps(self, their_groups: list[dict[str, Any]]) -> None:
        jump = self._jump(their_groups)
        assert jump is not None
        their, our = jump
        end = self.saved.decay_end
        rank_zero_info(
            f"the learning rate {'rises again' if our > their else 'falls'} from {their:.3g} to {our:.3g} at step "
            f"{self.saved.step}: model.decay_steps is not set, so the schedule's end moves with the length of training"
            f"{'' if end is None else f', from step {end} to {self.decay_end}'}. To keep the checkpoint's schedule, "
            f"set model.decay_steps to {'the last step of the run that wrote it' if end is None else end}"
        )

    def _overridden(
        self, optimizer: torch.optim.Optimizer, state: dict[str, Any], differences: list[tuple[str, Any, Any]]
    ) -> dict[str, Any]:
        anew = "" if self._same_optimizer else "; the new optimiser's state begins empty"
        before, factor = state["param_groups"][0]["lr"], self.factor(self.saved.step)
        if not self._same_optimizer:
            state = optimizer.state_dict()
        groups = [
            group | {"params": saved["params"], "lr": group["initial_lr"] * factor}
            for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
        ]
        rank_zero_info(
            f"model.override_optimizer changes, from step {self.saved.step} on: {_listed(differences)}{anew}; "
            f"the learning rate goes on from {before:.3g} with {groups[0]['lr']:.3g}"
        )
        return state | {"param_groups": groups}


class ScheduledRate(torch.optim.lr_scheduler.LambdaLR):
    """LambdaLR that keeps this run's peak rates when a checkpoint is loaded: by then they are the checkpoint's, or were
    to be changed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"base_lrs": self.base_lrs})
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def _compare(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any, Any]]:
    for key in ours | theirs:
        their, our = theirs.get(key), ours.get(key)
        if isinstance(their, dict) and isinstance(our, dict):
            yield from _compare(their, our, f"{prefix}{key}.")
        elif their != our:
            yield f"{prefix}{key}", their, our


def _listed(differences: Iterable[tuple[str, Any, Any]]) -> str:
    return "; ".join(f"{name}: {their!r} in the checkpoint, {our!r} in this run" for name, their, our in differences)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else float(value)


def _short(description: dict[str, Any]) -> str:
    return description["class_path"].rpartition(".")[2]
