"""What a forward pass leaves in memory for the backward, counted exactly, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    """Every storage that an operator returned, and its size; it keeps none of them alive."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.known:
                    self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result


def bytes_kept(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes of the storages that `forward` made and that its result keeps alive: activations for the backward.

    known: tensors that were there before, parameters and inputs, which do not count even where views of them do.
    """
    with _Storages(known) as storages:
        result = forward()
    own = result.untyped_storage()._cdata
    alive = (size for cdata, (ref, size) in storages.made.items() if not ref.expired() and cdata != own)
    total = sum(alive)
    del result
    return total


def peak_bytes(device: torch.device) -> int | None:
    """Largest number of bytes allocated on a CUDA device since `reset_peak`; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
