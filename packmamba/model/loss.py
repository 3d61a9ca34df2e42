"""Next-token loss straight from hidden states: a linear layer and cross-entropy that never hold (T, V) logits.

T tokens · V vocabulary · d model width. Tokens go through in chunks; each chunk's logits become its gradient in place,
in the forward pass, so that only the gradients, (T, d) and (V, d), stay until the backward (the idea of liger-kernel's
fused linear cross-entropy, arXiv 2410.10989, and of Wijmans et al., arXiv 2411.09009).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from packmamba.errors import CannotRunError, UsageError, UsageTypeError

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
CHUNK_BYTES = 256 * 2**20
"""Largest chunk of fp32 logits that is alive at a time."""

LossBackend = Literal["auto", "chunked", "liger"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    reduction: Literal["sum", "none"] = "sum",
    backend: LossBackend = "auto",
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Cross-entropy, in nats, of `hidden @ weight.T` against labels.

    hidden: (T, d); weight: (V, d), the same dtype; labels: int64 (T,), -100 = no loss. Under autocast the products run
    in autocast's dtype and a wide weight still gets its gradient summed in fp32. Logits, losses and the sum over
    chunks of the weight's gradient are fp32 (fp64 for fp64 inputs).

    reduction "sum": a scalar, the sum over labels that are not -100; "none": (T,) per-token losses, 0 where the label
    is -100, without gradient. backend "auto": liger-kernel for sums on CUDA where it is installed (it copies one
    number to the host a call), else "chunked"; logs which, once. chunk_bytes: the budget of "chunked".

    Raises UsageError (a ValueError) for shapes that do not fit, or a label outside 0..V-1 (on the CPU; on CUDA nothing
    is copied back to look); UsageTypeError (a TypeError) for dtypes that differ or labels that are not int64;
    CannotRunError (a RuntimeError) where reduction="none" would need a gradient or the named backend cannot run.
    """
    _check_inputs(hidden, weight, labels, reduction)
    if backend == "auto":
        backend = _choose_backend(hidden, reduction)
    elif backend == "liger":
        if reason := _why_not_liger(hidden, reduction):
            raise CannotRunError(f"loss backend 'liger' cannot run: {reason}")
    elif backend != "chunked":
        raise UsageError(f"unknown loss backend {backend!r}; available: auto, chunked, liger")

    device_type = hidden.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
    if backend == "liger":
        return _liger(hidden.to(dtype), weight, labels)
    chunk = max(1, chunk_bytes // (4 * weight.shape[0]))
    with torch.autocast(device_type, enabled=False):
        if reduction == "sum" and torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            loss = _ChunkedLinearCrossEntropy.apply(hidden, weight, labels, dtype, chunk)
            assert isinstance(loss, Tensor)
            return loss
        losses, _, _ = _sweep(hidden, weight, labels, dtype, chunk, False, False)
        return losses.sum() if reduction == "sum" else losses


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses; its gradients are made in the forward and scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, chunk: int) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        losses, d_hidden, d_weight = _sweep(hidden, weight, labels, dtype, chunk, wants_hidden, wants_weight)
        ctx.save_for_backward(d_hidden, d_weight)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the types of once_differentiable)
        ctx: Any, d_loss: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * d_loss.to(d_hidden.dtype),
            None if d_weight is None else d_weight * d_loss.to(d_weight.dtype),
            None,
            None,
            None,
        )


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    chunk: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses (T,), and where wanted the gradients of their sum, (T, d) and (V, d), in the inputs' dtypes."""
    wide = torch.promote_types(dtype, torch.float32)
    weight_cast = weight.to(dtype)
    losses = torch.empty(labels.shape, dtype=wide, device=hidden.device)
    d_hidden = torch.empty_like(hidden) if wants_hidden else None
    d_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
    for start in range(0, hidden.shape[0], chunk):
        rows = slice(start, start + chunk)
        _sweep_chunk(
            hidden[rows].to(dtype),
            weight_cast,
            labels[rows],
            losses[rows],
            None if d_hidden is None else d_hidden[rows],
            d_weight,
        )
    return losses, d_hidden, None if d_weight is None else d_weight.to(weight.dtype)


def _sweep_chunk(
    hidden: Tensor, weight: Tensor, labels: Tensor, losses: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None
) -> None:
    """One chunk of t tokens: fills its losses (t,) and d_hidden (t, d), adds to d_weight (V, d)."""
    valid = labels != IGNORE_INDEX
    target = labels.where(valid, 0)[:, None]  # (t, 1)
    scores = (hidden @ weight.T).to(losses.dtype)  # (t, V), in place from here on
    scores -= scores.amax(dim=1, keepdim=True)
    target_score = scores.gather(1, target)
    sums = scores.exp_().sum(dim=1, keepdim=True)
    losses.copy_((sums.log() - target_score).squeeze(1).where(valid, 0))
    if d_hidden is None and d_weight is None:
        return

    scores /= sums  # probabilities
    scores.scatter_(1, target, scores.gather(1, target) - 1)
    d_scores = scores.masked_fill_(~valid[:, None], 0).to(hidden.dtype)
    if d_hidden is not None:
        d_hidden.copy_(d_scores @ weight)
    if d_weight is not None:
        d_weight += d_scores.T @ hidden


def _liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore[reportMissingImports]

    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum", accum_dtype=torch.float32)
    return loss(weight, hidden, labels)


def _choose_backend(hidden: Tensor, reduction: str) -> LossBackend:
    chosen: LossBackend = "chunked" if _why_not_liger(hidden, reduction) else "liger"
    if not torch.compiler.is_compiling() and reduction == "sum":
        _log_choice(chosen, hidden.device.type)
    return chosen


@functools.cache
def _log_choice(chosen: str, device_type: str) -> None:
    """Logs a choice the first time it is made."""
    logger.info("loss backend auto on %s: %s", device_type, chosen)


def _why_not_liger(hidden: Tensor, reduction: str) -> str | None:
    if hidden.device.type != "cuda":
        return f"it needs CUDA tensors, got {hidden.device.type}; use 'chunked' or 'auto'"
    if reduction != "sum":
        return f"it is used for reduction='sum', got {reduction!r}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "the liger-kernel package is not installed; pip install liger-kernel"
    return None


def _check_inputs(hidden: Tensor, weight: Tensor, labels: Tensor, reduction: str) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise UsageError(
            f"hidden must be (T, d) and weight (V, d), got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if labels.shape != hidden.shape[:1]:
        raise UsageError(f"labels must have shape ({hidden.shape[0]},), one a token, got {tuple(labels.shape)}")
    if labels.dtype != torch.int64:
        raise UsageTypeError(f"labels must be int64, got {labels.dtype}")
    autocast = torch.is_autocast_enabled(hidden.device.type)
    if not hidden.is_floating_point() or (hidden.dtype != weight.dtype and not autocast):
        raise UsageTypeError(
            f"hidden and weight must share one floating-point dtype, got {hidden.dtype}, {weight.dtype}"
        )
    if reduction not in ("sum", "none"):
        raise UsageError(f"reduction must be 'sum' or 'none', got {reduction!r}")
    if reduction == "none" and torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        raise CannotRunError("reduction='none' has no gradient; call it under torch.no_grad(), or use reduction='sum'")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= weight.shape[0]))
        if bool(bad.any()):
            i = int(bad.int().argmax())
            raise UsageError(
                f"label {int(labels[i])} at position {i} is neither {IGNORE_INDEX} nor in 0..{weight.shape[0] - 1}"
            )
