"""How A and states lie in the Triton kernels: eight channels together, for each of which all states follow.

A walk holds N states of many channels, and has to name where each lies. Each row of a matrix (E, N) or (N, E) needs an
address of its own; here those of a channel's states differ by constants, which a load or a store has room for.

S sequences (documents) · E channels · N states of a channel.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

OCTET = 8
"""Channels that lie together."""


def matrix_shape(channels: int, num_states: int) -> tuple[int, int, int]:
    """(ceil(E/8), N, 8)."""
    return -(-channels // OCTET), num_states, OCTET


def to_matrices(x: Tensor) -> Tensor:
    """(S, E, N) -> (S, ceil(E/8), N, 8), with zeros for channels that do not exist."""
    if x.shape[1] % OCTET:
        x = F.pad(x, (0, 0, 0, -x.shape[1] % OCTET))
    return x.unflatten(1, (-1, OCTET)).mT.contiguous()


def from_matrices(x: Tensor, channels: int) -> Tensor:
    """(S, ceil(E/8), N, 8) -> (S, E, N)."""
    return x.mT.flatten(1, 2)[:, :channels].contiguous()
