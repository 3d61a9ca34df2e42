"""What the gated RMS normalisation takes and gives, by name. T tokens in a pack · E channels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NormInputs(NamedTuple):
    y: Tensor
    """(T, E)."""
    z: Tensor | None
    """(T, E)."""
    weight: Tensor
    """(E,)."""


class NormOptions(NamedTuple):
    eps: float
    group_size: int
    """Channels that are normalised together."""
    norm_before_gate: bool


class NormGradients(NamedTuple):
    """As the inputs, each in its own dtype; None for one that is None."""

    dy: Tensor
    dz: Tensor | None
    dweight: Tensor
