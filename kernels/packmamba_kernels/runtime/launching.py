"""Launching a kernel again without asking Triton again what it was compiled to.

`kernel[grid](...)` looks at every argument, to see for which dtypes, divisibilities and constants it needs a compiled
kernel: 7 to 20 µs of Python a launch. Calls with one signature always need the same, so what the first launch returned
is launched again as it is, by `compiled[grid](...)`: an interface of Triton that is not documented, checked with
versions 3.6 to 3.9.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

from packmamba_kernels.checks import MAX_SIGNATURES
from packmamba_kernels.runtime.triton_glue import LAUNCH_OPTIONS

CACHE = os.environ.get("PACKMAMBA_LAUNCH_CACHE", "1") != "0"
"""Whether compiled kernels are remembered by signature; else Triton is asked at every launch."""


class CompiledKernels:
    """The kernels compiled for calls with one signature, by name."""

    def __init__(self) -> None:
        self._compiled: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def launch(
        self, name: str, kernel: Any, programs: int, arguments: tuple[Any, ...], options: Callable[[], dict[str, Any]]
    ) -> None:
        """Launches `kernel` with `arguments`, and with what `options` returns: its compile-time arguments, which come
        after all others in its signature, and num_warps and the like. They follow from the call's signature, so they
        are asked for once. name: of the kernel in this call; one that is launched twice has two."""
        known = self._compiled.get(name)
        if known is not None:
            compiled, constants = known
            compiled[programs, 1, 1](*arguments, *constants)
            return
        given = LAUNCH_OPTIONS | options()
        compiled = kernel[(programs,)](*arguments, **given)
        if CACHE and compiled is not None:  # None in Triton's interpreter
            self._compiled[name] = compiled, tuple(given[name] for name in kernel.arg_names[len(arguments) :])


_by_signature: dict[Hashable, CompiledKernels] = {}


def compiled_for(tensors: Sequence[Tensor | None], *numbers: Hashable) -> CompiledKernels:
    """The kernels compiled for calls with this signature.

    tensors: all that kernels get, as they get them (after `.contiguous()` and the like), and that were not allocated
    for them. Their dtypes and strides count, whether they lie at multiples of 16 bytes, as fresh memory does, and
    the first one's device; None counts as None. One table stands for all of a schedule: they lie at multiples of 16
    bytes from each other. numbers: what else decides what kernels are compiled to: integers that Triton specialises
    on, and whatever `options` depend on. Integers that change from pack to pack are not specialised on and stay below
    2**31, as cu_seqlens does.
    """
    signature = [*numbers]
    for x in tensors:
        if x is None:
            signature.append(None)
        else:
            signature += x.dtype, x.stride(), x.data_ptr() % 16 == 0
    signature.append(tensors[0].device)  # pyright: ignore[reportOptionalMemberAccess]
    key = tuple(signature)
    known = _by_signature.get(key)
    if known is None:
        if len(_by_signature) >= MAX_SIGNATURES:
            _by_signature.clear()
        known = _by_signature[key] = CompiledKernels()
    return known
