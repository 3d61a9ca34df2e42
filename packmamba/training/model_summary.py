"""A model and how it is trained, in words and numbers: parameters by kind of layer, bytes, FLOPs, learning rate."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from packmamba.model import HybridLM, training_flops
from packmamba.training.lightning_compat import datamodule_of
from packmamba.training.lit import LitHybridLM

STATE_BYTES = {"AdamW": 8, "AdamW8bit": 2, "SGD": 4}
"""Bytes that an optimiser keeps for each parameter, beside its gradient; others are not counted."""

DECAYS = {
    "Cosine": "falls along half a cosine to {lowest:.1e} at step {end}",
    "Linear": "falls in a straight line to {lowest:.1e} at step {end}",
    "WSD": "stays, and at the end falls to {lowest:.1e} at step {end}",
    "Constant": "stays",
}
"""What the learning rate does after the warm-up, by the schedule's name."""


@dataclass(frozen=True)
class Part:
    """Parameters of one part of a model."""

    name: str
    layers: int | None
    """How many layers there are of this kind; None for what is no layer."""
    parameters: int


def parts_of(model: HybridLM) -> list[Part]:
    """The parts of a model: embedding, kinds of layers (their norms included) in the order of the pattern, the last
    norm, and an output head with weights of its own."""
    by_kind: dict[str, list[int]] = {}
    for name, layer in zip(model.config.layer_names, model.backbone.layers, strict=True):
        by_kind.setdefault(name, []).append(_size(layer))
    parts = [Part("embedding", None, _size(model.backbone.embedding))]
    parts += [Part(name, len(sizes), sum(sizes)) for name, sizes in by_kind.items()]
    parts += [Part("last norm", None, _size(model.backbone.norm_f))]
    head = _size(model) - sum(part.parameters for part in parts)
    return [*parts, Part("output head", None, head)] if head else parts


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def describe_model(lit: LitHybridLM, *, capacity: int | None, precision: str | None) -> list[str]:
    """Lines of at most 80 characters. capacity: tokens of a pack, for which FLOPs are counted; None: they are left out.
    precision: of the Trainer."""
    model = lit.model
    if model is None:
        with torch.device("meta"):
            model = HybridLM(lit.config)
    parts = parts_of(model)
    total = sum(part.parameters for part in parts)
    lines = [f"{'':<18}{'layers':>8}{'parameters':>16}{'':>9}"]
    for part in parts:
        layers = "" if part.layers is None else str(part.layers)
        lines.append(f"{part.name:<18}{layers:>8}{part.parameters:>16,}{part.parameters / total:>9.1%}")
    lines.append(f"{'all':<18}{len(lit.config.layers):>8}{total:>16,}")
    tied = ", the output head is the embedding" if lit.config.tie_embeddings else ""
    lines.append(f"pattern {_shortened(lit.config.layer_pattern)}, d_model {lit.config.d_model}{tied}")
    width = {"16-true": 2, "bf16-true": 2, "64-true": 8}.get(str(precision), 4)
    name, state = optimizer_name(lit), STATE_BYTES.get(optimizer_name(lit))
    sizes = [f"weights {in_bytes(width * total)}", f"gradients {in_bytes(width * total)}"]
    if state is not None:
        sizes += [f"{name} {in_bytes(state * total)}", f"together {in_bytes((2 * width + state) * total)}"]
    lines.append(", ".join(sizes))
    if capacity is not None:
        flops = training_flops(lit.config, [capacity]) / capacity
        lines.append(f"{in_units(flops)}FLOPs a token, forward and backward, in a document of {capacity:,} tokens")
    return lines


def optimizer_name(lit: LitHybridLM) -> str:
    """The class of the optimiser."""
    return type(lit.optimizer).__name__


def describe_schedule(lit: LitHybridLM, last_step: int | None) -> str:
    """The learning rate and the rest of the optimiser in a sentence. last_step: the Trainer's; None: unknown."""
    name = type(lit.schedule).__name__
    peak, end = lit.learning_rate, lit.decay_steps or last_step
    rises = f"rises to {peak:.1e} in {lit.warmup_steps} steps" if lit.warmup_steps else f"begins at {peak:.1e}"
    then = DECAYS.get(name, "then does what {name} says").format(
        lowest=peak * lit.min_learning_rate_ratio, end="(the last)" if end is None else f"{end:,}", name=name
    )
    decay = f"weight decay {lit.weight_decay:g}"
    return f"{optimizer_name(lit)}, {decay}; the learning rate {rises}, {then}"


class ModelSummary(Callback):
    """Prints what is trained when training starts, once."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, LitHybridLM):
            self._print(trainer, pl_module)

    @rank_zero_only
    def _print(self, trainer: Trainer, lit: LitHybridLM) -> None:
        capacity: Any = getattr(datamodule_of(trainer), "capacity", None)
        for line in describe_model(lit, capacity=capacity, precision=str(trainer.precision)):
            print(line.rstrip(), file=sys.stderr)


def in_bytes(number: float) -> str:
    """12.3 GB (10⁹ bytes).

    >>> in_bytes(4_156_416)
    '4.2 MB'
    """
    return f"{in_units(number)}B"


def in_units(number: float) -> str:
    """Three digits and a prefix.

    >>> in_units(6_360_000_000)
    '6.36 G'
    """
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.0f} "


def _shortened(pattern: str, longest: int = 40) -> str:
    return pattern if len(pattern) <= longest else f"{pattern[: longest - 3]}... ({len(pattern)} layers)"
