"""What the packed causal convolution takes and gives, by name.

T tokens in a pack · S sequences (documents) · E channels · W width of the convolution.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ConvInputs(NamedTuple):
    x: Tensor
    """(T, E)."""
    weight: Tensor
    """(E, W)."""
    bias: Tensor | None
    """(E,)."""
    initial_states: Tensor | None
    """(S, E, W-1)."""


class ConvOptions(NamedTuple):
    activation: str | None
    """None or "silu"."""
    return_final_states: bool = False


class ConvResults(NamedTuple):
    out: Tensor
    """(T, E)."""
    final_states: Tensor
    """(S, E, W-1), or empty."""


class ConvGradients(NamedTuple):
    """As the inputs, each in its own dtype; None for one that is None."""

    dx: Tensor
    dweight: Tensor
    dbias: Tensor | None
    dinitial_states: Tensor | None
