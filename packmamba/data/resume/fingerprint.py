"""Whether the data of a resumed run come in the order in which they came when its checkpoint was saved."""

from __future__ import annotations

from typing import Any, NamedTuple

from packmamba.data.position import Position
from packmamba.errors import UsageError


class SavedData(NamedTuple):
    """A checkpoint's description of the data at its position."""

    position: Position
    fingerprint: dict[str, Any]
    """See `DataOptions.fingerprint`."""
    digests: dict[str, str | None]
    """See `PlannedDataset.digests`."""


_ADDED = {"train_on": "all_assistant"}
"""Options that older checkpoints do not have, and what they would have been."""


def translated(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's fingerprint by today's names. Until version 0.1.0, attention had one cost and one window."""
    fingerprint = _ADDED | fingerprint
    if "attention_cost" not in fingerprint:
        return fingerprint
    kept = {name: value for name, value in fingerprint.items() if name not in ("attention_cost", "attention_window")}
    cost = fingerprint["attention_cost"]
    costs = [{"cost": cost, "window": fingerprint["attention_window"]}] if cost else []
    return kept | {"attention_costs": None if cost is None else costs}


def require_same(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Raises UsageError naming the values that are not as they were when a checkpoint was saved."""
    changed = [
        f"{name} was {saved.get(name)!r} and is {current.get(name)!r}"
        for name in saved | current
        if saved.get(name) != current.get(name)
    ]
    if changed:
        raise UsageError(
            f"cannot resume where the checkpoint stopped, because the data would come in another order: "
            f"{'; '.join(changed)}. Restore them, or start a new run from the checkpoint's weights"
        )
