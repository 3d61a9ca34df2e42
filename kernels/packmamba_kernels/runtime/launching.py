"""Launching a kernel again without asking Triton again what it was compiled to.

`kernel[grid](...)` looks at every argument, to see for which dtypes, divisibilities and constants it needs a compiled
kernel: 7 to 20 µs of Python a launch. Calls of one form always need the same, so what the first launch returned is
launched again as it is, by `compiled[grid](...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

from packmamba_kernels.checks import MAX_FORMS
from packmamba_kernels.runtime.triton_glue import LAUNCH_OPTIONS


class Launches:
    """What calls of one form launch, each kernel by the name of its place in the call."""

    def __init__(self) -> None:
        self._compiled: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __call__(
        self, place: str, kernel: Any, programs: int, arguments: tuple[Any, ...], options: Callable[[], dict[str, Any]]
    ) -> None:
        """Launches `kernel` with `arguments`, and with what `options` returns: its compile-time arguments, which come
        after all others in its signature, and num_warps and the like. The form decides them, so they are asked for
        once."""
        known = self._compiled.get(place)
        if known is not None:
            compiled, constants = known
            compiled[programs, 1, 1](*arguments, *constants)
            return
        given = LAUNCH_OPTIONS | options()
        compiled = kernel[(programs,)](*arguments, **given)
        if compiled is not None:  # as in Triton's interpreter
            self._compiled[place] = compiled, tuple(given[name] for name in kernel.arg_names[len(arguments) :])


_FORMS: dict[Hashable, Launches] = {}


def launches(tensors: Sequence[Tensor | None], tables: Sequence[Tensor], *numbers: Hashable) -> Launches:
    """Of a call of this form.

    tensors: all that kernels get and that were not allocated for them: which are there, their dtypes and strides,
    whether they lie at multiples of 16 bytes, as fresh memory does, and the first one's device. tables: the same of
    contiguous int32. numbers: what else decides what kernels are compiled to: integers that Triton specialises on, and
    whatever `options` depend on. Integers that change from pack to pack are not specialised on and stay below 2**31,
    as cu_seqlens does.
    """
    form = [*numbers]
    for x in tensors:
        if x is None:
            form.append(None)
        else:
            form += x.dtype, x.stride(), x.data_ptr() % 16 == 0
    form += [table.data_ptr() % 16 == 0 for table in tables]
    form.append(tensors[0].device)  # pyright: ignore[reportOptionalMemberAccess]
    key = tuple(form)
    known = _FORMS.get(key)
    if known is None:
        if len(_FORMS) >= MAX_FORMS:
            _FORMS.clear()
        known = _FORMS[key] = Launches()
    return known
