"""The parts every layer is built from: projections, RMSNorm, the embedding and the output head.

One rule makes re-initialisation safe: every module's `reset_parameters` sets exactly the parameters that the module
itself owns, and knows how. So `for m in model.modules(): m.reset_parameters()`, in any order, also after
`to_empty(device=...)` from the meta device, gives the same distributions as the constructor.

`no_decay` on a module class names those of its own parameters that weight decay must not touch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Linear):
    """x (..., in) -> (..., out). Kaiming-uniform weight as `nn.Linear`, zero bias.

    residual_layers: where the output joins the residual stream, the number of layers that do so; the weight is scaled
    by residual_layers ** -0.5, so that the stream's variance at initialisation does not grow with depth (GPT-2).
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False, residual_layers: int = 1) -> None:
        self.residual_layers = residual_layers  # before the parent's constructor, which calls reset_parameters
        super().__init__(in_features, out_features, bias=bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.weight.mul_(self.residual_layers**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RMSNorm(nn.Module):
    """x (T, d) of any floating-point dtype -> (T, d) in the weight's dtype; statistics in fp32 (arXiv 1910.07467)."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps).to(self.weight.dtype)


class TokenEmbedding(nn.Embedding):
    """ids (T,) -> (T, d_model). Rows are drawn from N(0, std²)."""

    def __init__(self, vocab_size: int, d_model: int, std: float) -> None:
        self.std = std  # before the parent's constructor, which calls reset_parameters
        super().__init__(vocab_size, d_model)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


class OutputHead(nn.Linear):
    """hidden (T, d_model) -> logits (T, V). Where tied, the weight is the embedding's, and the embedding resets it."""

    def __init__(self, vocab_size: int, d_model: int, tied_to: TokenEmbedding | None = None) -> None:
        self.is_tied = tied_to is not None
        super().__init__(d_model, vocab_size, bias=False, device="meta" if self.is_tied else None)
        if tied_to is not None:
            self.weight = tied_to.weight

    def reset_parameters(self) -> None:
        if not self.is_tied:
            super().reset_parameters()
