"""What every operator checks of its arguments, of `cu_seqlens` and a schedule, once, at the edge."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, int32

from packmamba_kernels.schedule import Schedule

MAX_FORMS = 1024
"""Forms of calls that are remembered. A model has a handful; beyond that something changes with every call."""

_right: set[Hashable] = set()


def check_once(check: Callable[..., None], *arguments: Any) -> None:
    """check(*arguments), unless arguments that differ in values only have passed it before.

    arguments: plain tensors, schedules, strings and None. check: looks at no value of a tensor, and raises.
    """
    form: list[Hashable] = [check]
    for x in arguments:
        if x is None or type(x) is str:
            form.append(x)
        elif type(x) is Schedule:
            table = x.chunks.cu_segments
            form += x.num_tokens, table.shape, table.device
        else:
            form += x.shape, x.dtype, x.stride(), x.device
    key = tuple(form)
    if key in _right:
        return
    check(*arguments)
    if len(_right) >= MAX_FORMS:
        _right.clear()
    _right.add(key)


def check_cu_seqlens(cu_seqlens: Tensor, x: Tensor, name: str) -> int:
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


def check_schedule(schedule: Schedule, cu_seqlens: Tensor | None, x: Tensor, name: str) -> None:
    """Raises ValueError for a schedule of other documents than cu_seqlens has, or on another device than x."""
    if cu_seqlens is None:
        raise ValueError("a schedule needs the cu_seqlens it was built from, got cu_seqlens=None")
    table = schedule.chunks.cu_segments
    if table.shape != cu_seqlens.shape:
        raise ValueError(
            f"schedule was built for {table.shape[0] - 1} documents, but cu_seqlens has {cu_seqlens.shape[0] - 1}"
        )
    if schedule.num_tokens != x.shape[0]:
        raise ValueError(f"schedule was built for {schedule.num_tokens} tokens, but {name} has T = {x.shape[0]}")
    if table.device != x.device:
        raise ValueError(f"schedule is on {table.device}, but {name} is on {x.device}; they must be on one device")


def check_bounds(cu_seqlens: Tensor, num_tokens: int, name: str) -> None:
    """The values of cu_seqlens, on the CPU. Runs inside the operator, where values exist under torch.compile too.

    Raises ValueError where they do not start at 0, strictly increase and end at num_tokens.
    """
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
