"""Optimisers by name: AdamW, Muon, AdamW8bit, SGD; a class of your own derives from `Optimizer`.

They are small frozen descriptions, which the command line and YAML name (`--model.optimizer Muon`); `build` makes the
torch optimiser. Learning rate, weight decay, betas and eps are options of the model, which they share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from packmamba.errors import CannotRunError, MissingPackageError, UsageError


@dataclass(frozen=True, kw_only=True)
class OptimizerInputs:
    """What an optimiser is made from: the parameters, and the options of the model that optimisers share."""

    groups: list[dict[str, Any]]
    """Groups for a torch optimiser, `params` and `weight_decay` (0 for norms, biases, A_log, D and such): every
    trainable parameter once."""
    matrices: Collection[Tensor]
    """Those of the parameters that are matrices of hidden layers: no embedding, output head, convolution or A_log."""
    learning_rate: float
    """The peak; the schedule multiplies it."""
    betas: tuple[float, float]
    """Decay rates of Adam's two moments."""
    eps: float
    """Adam's denominator offset."""
    fused: bool | None = None
    """True where all parameters are on a GPU and gradients are not scaled; None: torch's own choice."""


class Optimizer(ABC):
    """How the weights are changed. One of your own is a frozen dataclass that derives from this class, with plain
    values as fields; YAML names it by `class_path: my_module.MyOptimizer`."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Those of `betas`, `eps` and `weight_decay` that have no effect, and are refused if they are set."""

    @abstractmethod
    def build(self, inputs: OptimizerInputs) -> torch.optim.Optimizer:
        """The torch optimiser. One step of it must leave alone every parameter whose gradient is None."""


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay; on a GPU one kernel for all parameters."""

    def build(self, inputs: OptimizerInputs) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            inputs.groups, lr=inputs.learning_rate, betas=inputs.betas, eps=inputs.eps, fused=inputs.fused
        )


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(Optimizer):
    """AdamW with moments of 8 bits, by bitsandbytes, which has to be installed. Small tensors keep 32 bits."""

    def build(self, inputs: OptimizerInputs) -> torch.optim.Optimizer:
        try:
            import bitsandbytes  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingPackageError(
                "model.optimizer AdamW8bit needs bitsandbytes, which is not installed: pip install bitsandbytes"
            ) from error
        return bitsandbytes.optim.AdamW8bit(inputs.groups, lr=inputs.learning_rate, betas=inputs.betas, eps=inputs.eps)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum. Weight decay is added to the gradient, not decoupled."""

    unused: ClassVar[tuple[str, ...]] = ("betas", "eps")

    momentum: float = 0.9
    """The part of the last update that is taken again; 0 for none."""
    nesterov: bool = False
    """Whether the gradient is that after the momentum's update."""

    def __post_init__(self) -> None:
        _check_momentum(self.momentum)
        if self.nesterov and not self.momentum:
            raise UsageError("model.optimizer.nesterov needs model.optimizer.momentum more than 0, got 0")

    def build(self, inputs: OptimizerInputs) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            inputs.groups,
            lr=inputs.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=inputs.fused,
        )


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for the matrices of hidden layers, AdamW (betas, eps) for embedding, output head, convolutions, A_log, D,
    norms and biases. Learning rate and weight decay are those of both."""

    momentum: float = 0.95
    """Decay rate of the moving average of the gradients."""
    nesterov: bool = True
    """Whether the gradient is mixed with the moving average once more."""
    ns_steps: int = 5
    """Newton-Schulz iterations that make an update's singular values about equal."""
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """`match_rms_adamw` scales an update of A x B by 0.2 sqrt(max(A, B)), so that a learning rate for AdamW fits
    (arXiv 2502.16982); `original` by sqrt(max(1, A / B)), for which usual learning rates are about 20 times higher."""

    def __post_init__(self) -> None:
        _check_momentum(self.momentum)
        if not 1 <= self.ns_steps < 100:
            raise UsageError(f"model.optimizer.ns_steps must be from 1 to 99, got {self.ns_steps}")
        if self.adjust_lr not in ("match_rms_adamw", "original"):
            raise UsageError(f"model.optimizer.adjust_lr must be match_rms_adamw or original, got {self.adjust_lr!r}")

    def build(self, inputs: OptimizerInputs) -> torch.optim.Optimizer:
        matrices = {id(parameter) for parameter in inputs.matrices}
        by_muon = _only(inputs.groups, lambda parameter: id(parameter) in matrices)
        if not by_muon:
            raise CannotRunError(
                "model.optimizer Muon needs a matrix of a hidden layer, and none is trained: use AdamW"
            )
        muon = torch.optim.Muon(
            by_muon,
            lr=inputs.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn=self.adjust_lr,
        )
        rest = _only(inputs.groups, lambda parameter: id(parameter) not in matrices)
        if not rest:
            return muon
        return Together(
            muon,
            torch.optim.AdamW(rest, lr=inputs.learning_rate, betas=inputs.betas, eps=inputs.eps, fused=inputs.fused),
        )


class Together(torch.optim.Optimizer):
    """Several optimisers as one, which share its parameter groups and its state."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        """optimizers: of different parameters. They are changed: from now on this one holds their state."""
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of each; `closure`, which computes the gradients, is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._share()


def _only(groups: list[dict[str, Any]], wanted: Callable[[Tensor], bool]) -> list[dict[str, Any]]:
    chosen = [group | {"params": [parameter for parameter in group["params"] if wanted(parameter)]} for group in groups]
    return [group for group in chosen if group["params"]]


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise UsageError(f"model.optimizer.momentum must be from 0 to below 1, got {momentum}")
