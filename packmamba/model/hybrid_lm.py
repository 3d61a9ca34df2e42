"""HybridLM: embedding, a stack of pre-norm residual layers chosen by `layer_pattern`, a norm, an output head.

T tokens of a pack · V vocabulary. A pattern of `1` only has the state-dict of state-spaces/mamba's models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from packmamba.config import ModelConfig
from packmamba.model.block import ResidualBlock
from packmamba.model.compute import keep_sequence_mixing
from packmamba.model.layers import OutputHead, RMSNorm, TokenEmbedding
from packmamba.model.loss import linear_cross_entropy
from packmamba.packing import Packing


class Backbone(nn.Module):
    """ids (T,) -> hidden states (T, d_model) in the parameters' dtype, after the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.embedding = TokenEmbedding(config.vocab_size, config.d_model, config.initializer_range)
        self.layers = nn.ModuleList(ResidualBlock(config, kind) for kind in config.layer_kinds)
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        self.recompute_blocks = config.recompute == "block"

    def forward(self, input_ids: Tensor, packing: Packing) -> Tensor:
        x = self.embedding(input_ids)
        if self.residual_in_fp32:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        for layer in self.layers:
            x = self.run_layer(layer, x, packing)
        return self.norm_f(x)

    def run_layer(self, layer: nn.Module, x: Tensor, packing: Packing) -> Tensor:
        """One layer, (T, d_model) -> (T, d_model), of which the backward computes again what the configuration says."""
        if self.recompute_blocks and torch.is_grad_enabled():
            return checkpoint(layer, x, packing, use_reentrant=False, context_fn=keep_sequence_mixing)
        return layer(x, packing)


class HybridLM(nn.Module):
    """A language model over packed documents.

    >>> model = HybridLM(ModelConfig(layer_pattern="1*-", d_model=64, vocab_size=100))
    >>> model(torch.arange(15), Packing.from_lengths([5, 1, 9])).shape
    torch.Size([15, 100])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        tied_to = self.backbone.embedding if config.tie_embeddings else None
        self.lm_head = OutputHead(config.vocab_size, config.d_model, tied_to)

    def forward(
        self,
        input_ids: Tensor,
        packing: Packing,
        labels: Tensor | None = None,
        *,
        reduction: Literal["sum", "none"] = "sum",
    ) -> Tensor:
        """input_ids: int64 (T,). Returns logits (T, V), or the loss where labels are given.

        labels: int64 (T,), labels[t] is the token that position t should predict, -100 = no loss. Then the logits are
        never held, and `reduction` "sum" gives a scalar, the fp32 sum of the token losses in nats; "none" gives them
        one by one, (T,), 0 where there is no label, without gradient.

        Raises ValueError where a shape does not fit the packing, the packing is on another device, or (on the CPU; a
        GPU is not asked, call `check_token_ids` on the host batch) an id lies outside the vocabulary; TypeError for
        ids or labels that are not int64.
        """
        self._check_inputs(input_ids, packing, labels)
        hidden = self.backbone(input_ids, packing)
        if labels is None:
            return self.lm_head(hidden)
        return linear_cross_entropy(hidden, self.lm_head.weight, labels, reduction=reduction)

    def reset_parameters(self) -> None:
        """Draws every parameter anew, e.g. after building on the meta device and `to_empty(device=...)`."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # pyright: ignore[reportCallIssue]  (each sets what it owns: layers.py)

    def num_parameters(self) -> int:
        """Numbers to learn; a tied weight counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HybridLM:
        # Moving from the meta device makes new parameters, one for each name: tie them again.
        super()._apply(fn, recurse)
        if self.lm_head.is_tied:
            self.lm_head.weight = self.backbone.embedding.weight
        return self

    def _check_inputs(self, input_ids: Tensor, packing: Packing, labels: Tensor | None) -> None:
        tokens = (packing.num_tokens,)
        for name, value in (("input_ids", input_ids), ("labels", labels)):
            if value is None:
                continue
            if value.dtype != torch.int64:
                raise TypeError(f"{name} must be int64, got {value.dtype}")
            if value.shape != tokens:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, but the packing has T = {packing.num_tokens} tokens"
                )
            if value.device != packing.device:
                raise ValueError(
                    f"{name} is on {value.device}, but the packing is on {packing.device}; "
                    "move the packing with packing.to(device)"
                )
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            check_token_ids(input_ids, self.config.vocab_size)


def check_token_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raises ValueError for an id outside 0..vocab_size-1, naming it and its position.

    On a GPU this waits for the device; call it on the host batch, before the transfer.
    """
    bad = (input_ids < 0) | (input_ids >= vocab_size)
    if bool(bad.any()):
        i = int(bad.int().argmax())
        raise ValueError(
            f"token id {int(input_ids[i])} at position {i} is outside the vocabulary of {vocab_size} "
            f"(accepted: 0 to {vocab_size - 1}); does the tokenizer belong to this model?"
        )
