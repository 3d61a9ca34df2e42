"""Whether a call may run what is registered with torch past torch's dispatcher.

A call through the dispatcher passes four Python functions, which check again what is known, forward and backward: more
than 100 µs of a training step's host time that a GPU with 4,096 tokens to compute waits for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

ALWAYS_DISPATCH = os.environ.get("PACKMAMBA_DISPATCHER", "auto") == "always"
"""Whether every call goes through the dispatcher."""

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})


def may_bypass_dispatcher(tensors: Iterable[Any]) -> bool:
    """Whether the dispatcher would only run the registered function: there is no torch.compile, export or trace, no
    dispatch mode (FLOP counter, fake tensors, selective checkpointing), function transform or tensor subclass."""
    return not (
        torch.compiler.is_compiling()
        or ALWAYS_DISPATCH
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or not _PLAIN.issuperset(map(type, tensors))
    )
