"""When an operator has to go through torch's dispatcher, and when it may run what is registered there directly.

A call through the dispatcher passes four Python functions, which check again what is known, forward and backward: more
than 100 µs of a training step's host time that a GPU with 4,096 tokens to compute waits for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})


def unobserved(tensors: Iterable[Any]) -> bool:
    """Whether nobody would see the operator: neither torch.compile, export or a trace, nor a dispatch mode (the FLOP
    counter, fake tensors, selective checkpointing), a function transform, or a tensor subclass."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or not _PLAIN.issuperset(map(type, tensors))
    )


def direct(tensors: Iterable[Any]) -> bool:
    """Whether, besides, no gradient is recorded here: inside an autograd.Function, unless its backward is to be
    differentiated again (which the registered operators refuse)."""
    return not torch.is_grad_enabled() and unobserved(tensors)
