"""Where training stands in its data, as plain values. Everything here is the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Position(NamedTuple):
    """All packs before it are trained on, and none behind it."""

    epoch: int = 0
    section: int = 0
    """The section of a streamed source; any other source has one."""
    packs: int = 0
    """How many packs of the section's order are done, by whole optimiser steps."""


class Key(NamedTuple):
    """A batch of each rank: the one so many micro-steps after a position."""

    position: Position
    micro_step: int


_BEGINNING = Position()


@dataclass
class Origin:
    """The position from which a run's batches are counted."""

    position: Position = _BEGINNING
    batches: int = 0
    """The batches of the run that Lightning had counted there."""
    restored: dict[str, Any] | None = None
    """The state of a checkpoint, until the run has begun to iterate from it."""

    def restart(
        self, position: Position = _BEGINNING, batches: int = 0, restored: dict[str, Any] | None = None
    ) -> None:
        """Counts from another position on."""
        self.position, self.batches, self.restored = position, batches, restored
