"""Causal attention inside the documents of a pack: one function, one signature, three backends.

T tokens in a pack · H query heads · H_kv key/value heads (grouped-query attention) · D head dimension.

| backend | runs on | what it calls |
| --- | --- | --- |
| varlen | CUDA, fp16 or bf16 | `torch.nn.attention.varlen.varlen_attn` |
| flash | CUDA, fp16 or bf16 | `flash_attn_varlen_func` of the flash-attn package |
| sdpa | any device, any dtype | `scaled_dot_product_attention`, one call a document |

Every backend covers all T tokens and gives equal documents equal bits whatever the other documents hold. For gradients
that needs a backward without atomic additions: `flash` and `sdpa` on the CPU always have one; `varlen`, and `sdpa` on
CUDA, have one under `torch.use_deterministic_algorithms(True)` (Lightning: `Trainer(deterministic=True)`), and
otherwise add the pieces of dq in an order that changes from run to run.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from packmamba.config import AttentionBackend
from packmamba.packing import Packing

logger = logging.getLogger(__name__)

BACKENDS = ("varlen", "flash", "sdpa")
MAX_FLASH_HEAD_DIM = 256
_VARLEN_PARAMETERS = inspect.signature(varlen_attn).parameters


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    sliding_window: int | None = None,
    scale: float | None = None,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """Causal attention in which each token sees itself and earlier tokens of its own document, and nothing else.

    q: (T, H, D); k, v: (T, H_kv, D), H divisible by H_kv. sliding_window: each token sees itself and the
    sliding_window - 1 tokens before it; None: its whole document so far. scale: factor of the scores; None: D ** -0.5.
    Returns (T, H, D) in q's dtype.

    backend "auto" takes varlen where it can run and sdpa elsewhere, and logs which, once. A named backend that cannot
    run raises RuntimeError saying why; nothing falls back silently.

    Raises ValueError for shapes that do not fit each other or the packing, a window smaller than 1, a packing on
    another device or an unknown backend; TypeError where q, k and v differ in dtype or are not floating point.
    """
    _check_inputs(q, k, v, packing, sliding_window)
    if backend == "auto":
        backend = _choose_backend(q)
    elif backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; available: auto, {', '.join(BACKENDS)}")
    elif reason := _why_not(backend, q.device, q.dtype, q.shape[-1]):
        raise RuntimeError(f"attention backend {backend!r} cannot run: {reason}")
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale

    if backend == "varlen":
        return _varlen(q, k, v, packing, sliding_window, factor)
    if backend == "flash":
        return _flash(q, k, v, packing, sliding_window, factor)
    return _sdpa(q, k, v, packing, sliding_window, factor)


def explain_backends(
    device: torch.device | str | None = None, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64
) -> dict[str, str | None]:
    """For each backend: why it cannot run, or None where it can. device None: CUDA where there is one, else the CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {backend: _why_not(backend, torch.device(device), dtype, head_dim) for backend in BACKENDS}


def _varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing, sliding_window: int | None, scale: float) -> Tensor:
    # The signature grew: enable_gqa and num_splits came after torch 2.11, whose kernels take grouped heads unasked.
    # num_splits=1 keeps the order of the sums independent of the other documents' lengths (and newer torch from taking
    # cuDNN, which does not promise that).
    options = {"enable_gqa": q.shape[1] != k.shape[1], "num_splits": 1}
    out = varlen_attn(
        q,
        k,
        v,
        packing.cu_seqlens,
        packing.cu_seqlens,
        packing.max_seqlen,
        packing.max_seqlen,
        scale=scale,
        window_size=_window(sliding_window),
        **{name: value for name, value in options.items() if name in _VARLEN_PARAMETERS},
    )
    assert isinstance(out, Tensor)  # a tuple only where auxiliary outputs were asked for
    return out


def _flash(q: Tensor, k: Tensor, v: Tensor, packing: Packing, sliding_window: int | None, scale: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  (the `flash` extra)

    return flash_attn_varlen_func(
        q,
        k,
        v,
        packing.cu_seqlens,
        packing.cu_seqlens,
        packing.max_seqlen,
        packing.max_seqlen,
        softmax_scale=scale,
        causal=True,
        window_size=_window(sliding_window),
        deterministic=True,
    )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, packing: Packing, sliding_window: int | None, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    outputs = []
    for document in zip(packing.unpack(q), packing.unpack(k), packing.unpack(v), strict=True):
        q_i, k_i, v_i = (x.transpose(0, 1).unsqueeze(0) for x in document)  # (1, H, L, D)
        length = q_i.shape[2]
        mask = None
        if sliding_window is not None and sliding_window < length:
            mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
        out = F.scaled_dot_product_attention(
            q_i, k_i, v_i, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        outputs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def _window(sliding_window: int | None) -> tuple[int, int]:
    """(left, right) as flash attention counts them: tokens besides oneself; -1 is no limit."""
    return (-1 if sliding_window is None else sliding_window - 1, 0)


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


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, packing: Packing, sliding_window: int | None) -> None:
    shapes = f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 3 or k.ndim != 3 or v.ndim != 3:
        raise ValueError(f"q must be (T, H, D), k and v (T, H_kv, D); {shapes}")
    if k.shape != v.shape:
        raise ValueError(f"k and v must have the same shape; {shapes}")
    if q.shape[0] != packing.num_tokens or k.shape[0] != packing.num_tokens:
        raise ValueError(f"q, k and v must have T = {packing.num_tokens} rows, as the packing has tokens; {shapes}")
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"q and k must have the same head dimension; {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are not divisible by {k.shape[1]} key/value heads; {shapes}")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise TypeError(f"q, k and v must share one floating-point dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not (q.device == k.device == v.device == packing.device):
        raise ValueError(
            f"q, k, v and the packing must be on one device, got {q.device}, {k.device}, {v.device} "
            f"and {packing.device}; move the packing with packing.to(device)"
        )
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1 (a token sees itself), got {sliding_window}")
