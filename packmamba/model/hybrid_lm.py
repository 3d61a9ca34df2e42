"""HybridLM: embedding, a stack of pre-norm residual layers chosen by `layer_pattern`, a norm, an output head.

T tokens of a pack · S documents · V vocabulary. Models of `1` layers only have the state dict of state-spaces/mamba's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from packmamba.config import ComputeOptions, ModelConfig
from packmamba.errors import UsageError, UsageTypeError
from packmamba.model.block import ResidualBlock
from packmamba.model.compute import keep_sequence_mixing
from packmamba.model.layers import OutputHead, RMSNorm, TokenEmbedding
from packmamba.model.loss import linear_cross_entropy
from packmamba.model.mixers import MixerState
from packmamba.packing import Packing


@dataclass(frozen=True, eq=False)
class ModelState:
    """A model after some tokens of each of S documents; what comes next goes on from here, as often as wanted."""

    layers: tuple[MixerState | None, ...]
    """The state of each layer's mixer; None where it needs none."""
    num_seqs: int
    """S."""

    def to(self, device: torch.device | str) -> ModelState:
        """The same state on `device`."""
        return ModelState(tuple(None if state is None else state.to(device) for state in self.layers), self.num_seqs)


class Backbone(nn.Module):
    """ids (T,) -> hidden states (T, d_model) in the parameters' dtype, after the last norm."""

    def __init__(self, config: ModelConfig, compute: ComputeOptions) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.embedding = TokenEmbedding(config.vocab_size, config.d_model, config.initializer_range)
        self.layers = nn.ModuleList(ResidualBlock(layer, config, compute) for layer in config.layers)
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        self.recompute_blocks = compute.recompute == "block"

    def forward(self, input_ids: Tensor, packing: Packing) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = self.run_layer(layer, x, packing)
        return self.norm_f(x)

    def advance(self, input_ids: Tensor, packing: Packing, state: ModelState | None) -> tuple[Tensor, ModelState]:
        """As `HybridLM.advance`, but hidden states (T, d_model)."""
        x = self.embed(input_ids)
        before = (None,) * len(self.layers) if state is None else state.layers
        after = []
        for layer, layer_before in zip(self.layers, before, strict=True):
            assert isinstance(layer, ResidualBlock)
            x, layer_after = layer.advance(x, packing, layer_before)
            after.append(layer_after)
        return self.norm_f(x), ModelState(tuple(after), packing.num_seqs)

    def embed(self, input_ids: Tensor) -> Tensor:
        """The residual stream's start, (T, d_model)."""
        x = self.embedding(input_ids)
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.residual_in_fp32 else x

    def run_layer(self, layer: nn.Module, x: Tensor, packing: Packing) -> Tensor:
        """One layer, (T, d_model) -> (T, d_model). With recompute "block" the backward computes it again."""
        if self.recompute_blocks and torch.is_grad_enabled():
            return checkpoint(layer, x, packing, use_reentrant=False, context_fn=keep_sequence_mixing)
        return layer(x, packing)


class HybridLM(nn.Module):
    """A language model over packed documents.

    >>> model = HybridLM(ModelConfig(layer_pattern="1*-", d_model=64, vocab_size=100))
    >>> model(torch.arange(15), Packing.from_lengths([5, 1, 9])).shape
    torch.Size([15, 100])
    """

    def __init__(self, config: ModelConfig, compute: ComputeOptions | None = None) -> None:
        """config: what is computed. compute: how; None: the defaults."""
        super().__init__()
        self.config = config
        self.compute = compute or ComputeOptions()
        self.backbone = Backbone(config, self.compute)
        tied_to = self.backbone.embedding if config.tie_embeddings else None
        self.lm_head = OutputHead(config.vocab_size, config.d_model, tied_to)

    def forward(self, input_ids: Tensor, packing: Packing) -> Tensor:
        """Logits (T, V). input_ids: int64 (T,).

        Raises UsageError (a ValueError) where a shape does not fit the packing, the packing is on another device, or
        (on the CPU; a GPU is not asked, call `check_token_ids` on the host batch) an id lies outside the vocabulary;
        UsageTypeError (a TypeError) for ids that are not int64.
        """
        self._check_ids(input_ids, packing)
        return self.lm_head(self.backbone(input_ids, packing))

    def loss(
        self, input_ids: Tensor, packing: Packing, labels: Tensor, *, reduction: Literal["sum", "none"] = "sum"
    ) -> Tensor:
        """Cross-entropy of the next tokens; the logits are never held.

        input_ids: int64 (T,). labels: int64 (T,), labels[t] is the token that position t should predict, -100 = no
        loss. reduction "sum": a scalar, the fp32 sum of the token losses in nats; "none": the losses one by one, (T,),
        0 where there is no label, without gradient. Raises as `forward`, for the labels too.
        """
        self._check_ids(input_ids, packing)
        _check_tokens("labels", labels, packing)
        hidden = self.backbone(input_ids, packing)
        return linear_cross_entropy(hidden, self.lm_head.weight, labels, reduction=reduction)

    def advance(
        self, input_ids: Tensor, packing: Packing, state: ModelState | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits (T, V) of the next tokens of S documents, and the state after them: prefill, in pieces or at once, and
        single steps (a pack of one-token documents).

        input_ids: int64 (T,), at least one token of every document. state: what an earlier call returned for the same
        documents in the same order; None: their start. It is not changed, so that several continuations can start from
        it. For inference: call it under `torch.no_grad()`, no gradient goes through states.

        Raises as `forward`, and UsageError for a state of another number of documents, of another model or on another
        device.
        """
        self._check_ids(input_ids, packing)
        if state is not None:
            self._check_state(state, packing)
        hidden, state = self.backbone.advance(input_ids, packing, state)
        return self.lm_head(hidden), state

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

    def _check_ids(self, input_ids: Tensor, packing: Packing) -> None:
        _check_tokens("input_ids", input_ids, packing)
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            check_token_ids(input_ids, self.config.vocab_size)

    def _check_state(self, state: ModelState, packing: Packing) -> None:
        if state.num_seqs != packing.num_seqs:
            raise UsageError(f"the state is of {state.num_seqs} documents, but the packing has {packing.num_seqs}")
        layers = self.backbone.layers
        if len(state.layers) != len(layers):
            raise UsageError(f"the state is of a model of {len(state.layers)} layers, but this one has {len(layers)}")
        for i, (given, layer) in enumerate(zip(state.layers, layers, strict=True)):
            wanted = getattr(layer.mixer, "state_type", None) or type(None)
            if type(given) is not wanted:
                raise UsageError(
                    f"layer {i} takes a state of class {wanted.__name__}, got {type(given).__name__}: "
                    "the state is of another model"
                )


def _check_tokens(name: str, value: Tensor, packing: Packing) -> None:
    if value.dtype != torch.int64:
        raise UsageTypeError(f"{name} must be int64, got {value.dtype}")
    if value.shape != (packing.num_tokens,):
        raise UsageError(f"{name} has shape {tuple(value.shape)}, but the packing has T = {packing.num_tokens} tokens")
    if value.device != packing.device:
        raise UsageError(
            f"{name} is on {value.device}, but the packing is on {packing.device}; "
            "move the packing with packing.to(device)"
        )


def check_token_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raises UsageError for an id outside 0..vocab_size-1, naming it and its position.

    On a GPU this waits for the device; call it on the host batch, before the transfer.
    """
    bad = (input_ids < 0) | (input_ids >= vocab_size)
    if bool(bad.any()):
        i = int(bad.int().argmax())
        raise UsageError(
            f"token id {int(input_ids[i])} at position {i} is outside the vocabulary of {vocab_size} "
            f"(accepted: 0 to {vocab_size - 1}); does the tokenizer belong to this model?"
        )
