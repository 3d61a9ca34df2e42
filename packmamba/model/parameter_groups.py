"""Which parameters weight decay may touch, and the optimiser's groups made from that; which are hidden matrices."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from packmamba.model.layers import OutputHead, TokenEmbedding


def no_decay_parameters(model: nn.Module, *, decay_embeddings: bool) -> set[str]:
    """Names of the parameters that weight decay must not touch.

    These are vectors (biases, among them the step size's; norms; D), the names in a module class's `no_decay` (A_log
    and D of a Mamba mixer), and unless `decay_embeddings` the embedding, tied output head included. An output head
    with a weight of its own is a projection like any other, and decays.

    The rule reads module classes and shapes, not attributes on tensors, so it survives `to_empty`, `deepcopy` and
    sharding, which make new tensors.
    """
    names = set()
    for prefix, module in model.named_modules():
        is_embedding = isinstance(module, TokenEmbedding) or (isinstance(module, OutputHead) and module.is_tied)
        for name, parameter in module.named_parameters(recurse=False):
            if (
                parameter.ndim <= 1
                or name in getattr(module, "no_decay", ())
                or (is_embedding and not decay_embeddings)
            ):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_embeddings: bool) -> list[dict[str, Any]]:
    """Two groups for a torch optimiser, with `weight_decay` and with 0: every trainable parameter once, in one of them.

    A group that would be empty is left out.
    """
    excluded = no_decay_parameters(model, decay_embeddings=decay_embeddings)
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (kept if name in excluded else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The trainable matrices of hidden layers: projections, but neither the embedding nor the output head, no
    convolution (three dimensions), and nothing in a module class's `no_decay` (A_log)."""
    return [
        parameter
        for module in model.modules()
        if not isinstance(module, TokenEmbedding | OutputHead)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 2 and parameter.requires_grad and name not in getattr(module, "no_decay", ())
    ]
