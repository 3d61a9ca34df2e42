"""What every mixer is: a module that maps a pack at once (training), or piece by piece with a state (inference)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from packmamba.packing import Packing


@dataclass(frozen=True, eq=False)
class MixerState:
    """What a mixer must know of the tokens before, for each of S documents. Its fields have `.to(device)`."""

    def to(self, device: torch.device | str) -> Self:
        """The same state on `device`."""
        moved: dict[str, Any] = {field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **moved)


class Mixer(nn.Module):
    """Made as MixerClass(layer, config, compute), where `layer` is an entry of `config.layers`."""

    state_type: ClassVar[type[MixerState] | None] = None
    """The class of the mixer's state; None: it needs none."""

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """x (T, d_model) -> (T, d_model), each document from its start."""
        raise NotImplementedError

    def advance(self, x: Tensor, packing: Packing, state: Any) -> tuple[Tensor, Any]:
        """As `forward`, but x holds the next tokens of each document, and `state` what came before; None: nothing.

        Returns (T, d_model) and the state after these tokens; `state` itself stays as it is. For inference: call it
        under `torch.no_grad()`, no gradient goes through states.
        """
        raise NotImplementedError
