"""What every operator checks of its arguments, of `cu_seqlens` and a schedule, once, at the edge."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, bfloat16, dtype, float16, float32, float64, int32
from torch.nn import Parameter

from packmamba_kernels.schedule import Documents, Schedule

MAX_SIGNATURES = 1024
"""Signatures of calls that are remembered. A model has a handful; beyond that something changes with every call."""

DTYPES = (float16, bfloat16, float32, float64)

_passed: set[Hashable] = set()
_VALUES = frozenset({bool, int, float, str, type(None)})


def check_once(check: Callable[..., None], *arguments: Any) -> None:
    """check(*arguments), unless arguments of the same signature have passed it before.

    The signature is what check may look at: shapes, dtypes, strides and devices of tensors, but none of their values;
    tokens, documents and device of a schedule; flags, numbers, strings and None as they are. Arguments of
    other types are checked every time.
    """
    signature: list[Hashable] = [check]
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            signature += x.shape, x.dtype, x.stride(), x.device
        elif kind in _VALUES:
            signature += kind, x  # True equals 1
        elif kind is Schedule:
            signature += x.num_tokens, x.num_seqs, x.buffer.device
        else:
            check(*arguments)
            return
    key = tuple(signature)
    if key in _passed:
        return
    check(*arguments)
    if len(_passed) >= MAX_SIGNATURES:
        _passed.clear()
    _passed.add(key)


def check_tensors(tensors: dict[str, Any], optional: tuple[str, ...], dtypes: tuple[dtype, ...] = DTYPES) -> None:
    """Raises TypeError for what is no tensor or has another dtype, ValueError for one on another device than the first.

    tensors: by name. optional: the names of those that may be None.
    """
    main_name, main = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in dtypes:
            raise TypeError(f"{name} must have dtype float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != main.device:
            raise ValueError(
                f"{name} is on {tensor.device}, but {main_name} is on {main.device}; they must be on one device"
            )


def check_tokens(x: Tensor, name: str) -> None:
    """Raises ValueError unless x has shape (T, E) with a token and a channel."""
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape (T, E), without a batch dimension, got {tuple(x.shape)}")
    if x.shape[0] < 1 or x.shape[1] < 1:
        raise ValueError(f"{name} must have at least one token and one channel, got shape {tuple(x.shape)}")


def check_flags(**flags: Any) -> None:
    """Raises TypeError for a flag that is neither True nor False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_cu_seqlens(cu_seqlens: Any, x: Tensor, name: str) -> int:
    """S, the number of documents. x: the operator's main input, (T, ...); name: what its caller calls it.

    Raises TypeError for another dtype than int32, ValueError for another shape than (S+1,) or another device than x's.
    Looks at no value: `check_bounds` does.
    """
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens must be a torch.int32 tensor, got {type(cu_seqlens).__name__}")
    if cu_seqlens.dtype != int32:
        raise TypeError(f"cu_seqlens must be a torch.int32 tensor, got {cu_seqlens.dtype}")
    if cu_seqlens.device != x.device:
        raise ValueError(
            f"cu_seqlens is on {cu_seqlens.device}, but {name} is on {x.device}; they must be on one device"
        )
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must have shape (S+1,) with S >= 1, got {tuple(cu_seqlens.shape)}")
    return cu_seqlens.shape[0] - 1


def check_schedule(schedule: Any, cu_seqlens: Tensor | None, x: Tensor, name: str) -> None:
    """Raises TypeError for anything but a schedule, ValueError for one of other documents than cu_seqlens has, or on
    another device than x."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a Schedule (`Packing.schedule`), got {type(schedule).__name__}")
    if cu_seqlens is None:
        raise ValueError("a schedule needs the cu_seqlens it was built from, got cu_seqlens=None")
    num_seqs = cu_seqlens.shape[0] - 1
    if schedule.num_seqs != num_seqs:
        raise ValueError(f"schedule was built for {schedule.num_seqs} documents, but cu_seqlens has {num_seqs}")
    if schedule.num_tokens != x.shape[0]:
        raise ValueError(f"schedule was built for {schedule.num_tokens} tokens, but {name} has T = {x.shape[0]}")
    if schedule.device != x.device:
        raise ValueError(f"schedule is on {schedule.device}, but {name} is on {x.device}; they must be on one device")


def check_values(documents: Documents, x: Tensor, name: str) -> None:
    """The values of cu_seqlens, where that costs no wait for a GPU, or nothing else has checked them. Runs inside the
    operator, where values exist under torch.compile too. Raises as `check_bounds`."""
    if documents.schedule is None or not x.is_cuda:
        check_bounds(documents.cu_seqlens.cpu(), x.shape[0], name)


def check_bounds(cu_seqlens: Tensor, num_tokens: int, name: str) -> None:
    """Raises ValueError where the values of cu_seqlens, on the CPU, do not start at 0, strictly increase and end at
    num_tokens."""
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0:
        raise ValueError(f"cu_seqlens must start at 0, got {first}")
    if last != num_tokens:
        raise ValueError(f"cu_seqlens must end at T = {num_tokens}, the tokens of {name}, got {last}")
    if bool((cu_seqlens.diff() <= 0).any()):
        i = int((cu_seqlens.diff() <= 0).int().argmax())
        raise ValueError(
            f"cu_seqlens must strictly increase (a document has at least one token), "
            f"but entry {i} is {int(cu_seqlens[i])} and entry {i + 1} is {int(cu_seqlens[i + 1])}"
        )
