"""The public attention function: checks its arguments and chooses the backend, here and nowhere else.

T query tokens · T_k key tokens · H query heads · H_kv key/value heads (grouped-query attention) · D head dimension.
"""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch
from torch import Tensor

from packmamba.attention import flash, sdpa, varlen
from packmamba.attention.masks import AttentionMask
from packmamba.config import AttentionBackend
from packmamba.errors import CannotRunError, UsageError, UsageTypeError
from packmamba.packing import Packing

logger = logging.getLogger(__name__)

BACKENDS = ("varlen", "flash", "sdpa")
MAX_FLASH_HEAD_DIM = 256


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    key_packing: Packing | None = None,
    mask: AttentionMask | None = None,
    sliding_window: int | None = None,
    scale: float | None = None,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """Causal attention in which each token sees itself and earlier tokens of its own document, and nothing else.

    q: (T, H, D); k, v: (T_k, H_kv, D), H divisible by H_kv. key_packing: the documents of k and v, as many as packing
    has; a document's queries are the last of its keys. None: packing, T_k = T. mask: which keys a query sees; or
    sliding_window, short for AttentionMask(sliding_window=...): each token sees itself and the sliding_window - 1
    tokens before it; None: its whole document so far. scale: factor of the scores; None: D ** -0.5.
    Returns (T, H, D) in q's dtype.

    backend "auto" takes varlen where it can run and sdpa elsewhere, and logs which, once. A named backend that cannot
    run raises CannotRunError (a RuntimeError) saying why; nothing falls back silently.

    Raises UsageError (a ValueError) for shapes that do not fit each other or the packing, a window smaller than 1, a
    packing on another device, a document with more queries than keys or an unknown backend; UsageTypeError (a
    TypeError) where q, k and v differ in dtype or are not floating point.
    """
    if mask is None:
        mask = AttentionMask(sliding_window=sliding_window)
    elif sliding_window is not None:
        raise UsageError(f"give mask or sliding_window, not both: got {mask} and sliding_window={sliding_window}")
    if key_packing is None:
        key_packing = packing
    elif key_packing is not packing:
        _check_key_packing(packing, key_packing)
    _check_inputs(q, k, v, packing, key_packing)
    if backend == "auto":
        backend = _choose_backend(q)
    elif backend not in BACKENDS:
        raise UsageError(f"unknown attention backend {backend!r}; available: auto, {', '.join(BACKENDS)}")
    elif reason := _why_not(backend, q.device, q.dtype, q.shape[-1]):
        raise CannotRunError(f"attention backend {backend!r} cannot run: {reason}")
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale

    if backend == "varlen":
        return varlen.attend(q, k, v, packing, key_packing, mask, factor)
    if backend == "flash":
        return flash.attend(q, k, v, packing, key_packing, mask, factor)
    return sdpa.attend(q, k, v, packing, key_packing, mask, factor)


def explain_backends(
    device: torch.device | str | None = None, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64
) -> dict[str, str | None]:
    """For each backend: why it cannot run, or None where it can. device None: CUDA where there is one, else the CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {backend: _why_not(backend, torch.device(device), dtype, head_dim) for backend in BACKENDS}


def _choose_backend(q: Tensor) -> AttentionBackend:
    reason = _why_not("varlen", q.device, q.dtype, q.shape[-1])
    chosen: AttentionBackend = "varlen" if reason is None else "sdpa"
    if not torch.compiler.is_compiling():
        _log_choice(chosen, reason)
    return chosen


@functools.cache
def _log_choice(chosen: str, reason: str | None) -> None:
    """Logs a choice the first time it is made."""
    logger.info("attention backend auto: %s%s", chosen, f" (varlen cannot run: {reason})" if reason else "")


def _why_not(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a backend cannot run on such tensors; None where it can."""
    if backend == "sdpa":
        return None
    if backend == "flash" and importlib.util.find_spec("flash_attn") is None:
        return "the flash-attn package is not installed; pip install 'packmamba[flash]'"
    if device.type != "cuda":
        return f"it needs CUDA tensors, got {device.type}; use 'sdpa' or 'auto'"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs fp16 or bf16, got {dtype}; use mixed precision, 'sdpa' or 'auto'"
    if head_dim > MAX_FLASH_HEAD_DIM or head_dim % 8:
        return f"it needs a head_dim that is a multiple of 8 up to {MAX_FLASH_HEAD_DIM}, got {head_dim}"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"it needs compute capability 8.0 or newer, got {capability[0]}.{capability[1]}"
    return None


def _check_key_packing(packing: Packing, key_packing: Packing) -> None:
    if key_packing.num_seqs != packing.num_seqs:
        raise UsageError(
            f"key_packing has {key_packing.num_seqs} documents, but the packing of the queries has {packing.num_seqs}"
        )
    if key_packing.device != packing.device:
        raise UsageError(
            f"key_packing is on {key_packing.device}, but the packing of the queries is on {packing.device}; "
            "move one with packing.to(device)"
        )
    for i, (queries, keys) in enumerate(zip(packing.host_lengths, key_packing.host_lengths, strict=True)):
        if queries > keys:
            raise UsageError(f"document {i} has {queries} queries, but only {keys} keys; its queries are its last keys")


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, packing: Packing, key_packing: Packing) -> None:
    shapes = f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 3 or k.ndim != 3 or v.ndim != 3:
        raise UsageError(f"q must be (T, H, D), k and v (T_k, H_kv, D); {shapes}")
    if k.shape != v.shape:
        raise UsageError(f"k and v must have the same shape; {shapes}")
    if q.shape[0] != packing.num_tokens:
        raise UsageError(f"q must have T = {packing.num_tokens} rows, as the packing has tokens; {shapes}")
    if k.shape[0] != key_packing.num_tokens:
        raise UsageError(f"k and v must have {key_packing.num_tokens} rows, as the packing has tokens; {shapes}")
    if q.shape[2] != k.shape[2]:
        raise UsageError(f"q and k must have the same head dimension; {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise UsageError(f"{q.shape[1]} query heads are not divisible by {k.shape[1]} key/value heads; {shapes}")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise UsageTypeError(f"q, k and v must share one floating-point dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not (q.device == k.device == v.device == packing.device):
        raise UsageError(
            f"q, k, v and the packing must be on one device, got {q.device}, {k.device}, {v.device} "
            f"and {packing.device}; move the packing with packing.to(device)"
        )
