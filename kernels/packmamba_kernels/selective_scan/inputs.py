"""What the packed selective scan takes and gives, by name.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    u: Tensor
    """(T, E), as delta and z."""
    delta: Tensor
    A: Tensor
    """(E, N)."""
    B: Tensor
    """(T, N) or (T, G, N), as C."""
    C: Tensor
    D: Tensor | None
    """(E,), as delta_bias."""
    z: Tensor | None
    delta_bias: Tensor | None
    initial_states: Tensor | None
    """(S, E, N)."""

    @property
    def num_groups(self) -> int:
        """G."""
        return 1 if self.B.ndim == 2 else self.B.shape[1]


class ScanOptions(NamedTuple):
    delta_softplus: bool
    return_final_states: bool = False
    return_out: bool = False
    """Whether the backward gives out again, for callers that have not kept it."""


class ScanResults(NamedTuple):
    out: Tensor
    """(T, E)."""
    final_states: Tensor
    """(S, E, N), or empty."""
    starts: Tensor
    """The states where segments begin: all of them (I, N, E) from the reference, those that pass from one segment to
    the next (I-S, ceil(E/8), N, 8) from the kernels."""


class ScanGradients(NamedTuple):
    """As the inputs, None for one that is None."""

    du: Tensor
    ddelta: Tensor
    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor | None
    dz: Tensor | None
    ddelta_bias: Tensor | None
    dinitial_states: Tensor | None
    out: Tensor | None
    """(T, E), computed again where options.return_out."""
