"""Where a training step's time and memory go, by kind of layer.

Time stamps stand before and after every layer's forward and backward, so what a layer takes is the time between them,
on the device; what is left of the step is the embedding, the head with the loss, and the optimiser.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from packmamba.compare.memory import bytes_kept
from packmamba.compare.throughput import Clock, Trainee
from packmamba.packing import PackedBatch

REST = "embedding, head and loss"
OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class Share:
    """What all layers of one kind take of a step."""

    kind: str
    """A layer's name (its kind, and the symbol where that is not the kind's own), REST or OPTIMIZER."""
    layers: int
    forward_seconds: float
    backward_seconds: float
    """Recomputation included; for the optimiser, its whole time."""
    kept_bytes: int | None
    """What one such layer's forward keeps for its backward, times layers; None where that is not counted."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def break_down(trainee: Trainee, batch: PackedBatch, repeats: int = 5) -> list[Share]:
    """The shares of a training step on `batch`, medians over `repeats` steps after one that is not counted."""
    batch = batch.to(trainee.device)
    kinds = trainee.model.config.layer_names
    rows = [_timed_step(trainee, batch) for _ in range(repeats + 1)][1:]

    def median(pick: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(pick, rows))

    shares = []
    for kind in dict.fromkeys(kinds):
        mine = [i for i, other in enumerate(kinds) if other == kind]
        shares.append(
            Share(
                kind,
                len(mine),
                median(lambda row, mine=mine: sum(row["forward"][i] for i in mine)),
                median(lambda row, mine=mine: sum(row["backward"][i] for i in mine)),
                _kept_by_layer(trainee, batch, mine[0]) * len(mine),
            )
        )
    shares.append(Share(REST, 1, median(lambda row: row["rest"][0]), median(lambda row: row["rest"][1]), None))
    shares.append(Share(OPTIMIZER, 1, 0.0, median(lambda row: row["optimizer"]), None))
    return shares


def _timed_step(trainee: Trainee, batch: PackedBatch) -> dict[str, Any]:
    clock = Clock(trainee.device)
    marks: dict[tuple[str, str, int], int] = {}
    phase = "forward"

    def mark(part: str, edge: str, layer: int) -> None:
        if part == phase:  # a recomputed layer runs its forward inside the backward
            marks[part, edge, layer] = len(clock.stamps)
            clock.stamp()

    with _hooks(trainee, mark):
        clock.stamp()
        loss = trainee.loss(batch)
        middle = len(clock.stamps)
        clock.stamp()
        phase = "backward"
        loss.backward()
        end = len(clock.stamps)
        clock.stamp()
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)
        clock.stamp()
    if clock.cuda:
        torch.cuda.synchronize(trainee.device)
    layers = range(len(trainee.model.backbone.layers))
    spent = {
        part: [clock.seconds(marks[part, "begin", i], marks[part, "end", i]) for i in layers]
        for part in ("forward", "backward")
    }
    rest = (
        clock.seconds(0, middle) - sum(spent["forward"]),
        clock.seconds(middle, end) - sum(spent["backward"]),
    )
    return spent | {"rest": rest, "optimizer": clock.seconds(end, end + 1)}


@contextmanager
def _hooks(trainee: Trainee, mark: Callable[[str, str, int], None]) -> Any:
    handles = []
    for i, layer in enumerate(trainee.model.backbone.layers):
        handles += [
            layer.register_forward_pre_hook(lambda *_, i=i: mark("forward", "begin", i)),
            layer.register_forward_hook(lambda *_, i=i: mark("forward", "end", i)),
            layer.register_full_backward_pre_hook(lambda *_, i=i: mark("backward", "begin", i)),
            layer.register_full_backward_hook(lambda *_, i=i: mark("backward", "end", i)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kept_by_layer(trainee: Trainee, batch: PackedBatch, index: int) -> int:
    """Bytes that one layer keeps, its input included."""
    layer, backbone = trainee.model.backbone.layers[index], trainee.model.backbone
    embedded = backbone.embed(batch.input_ids).detach().requires_grad_()
    with trainee.autocast():
        return bytes_kept(
            lambda: backbone.run_layer(layer, embedded.clone(), batch.packing),
            [embedded, *trainee.model.parameters()],
        )


def trace(trainee: Trainee, batch: PackedBatch, path: Path) -> None:
    """Writes a Chrome trace of one training step (for chrome://tracing or ui.perfetto.dev), after one that is not
    recorded."""
    batch = batch.to(trainee.device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if trainee.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    trainee.step(batch)
    with torch.profiler.profile(activities=activities) as profiler:
        trainee.step(batch)
        if trainee.device.type == "cuda":
            torch.cuda.synchronize(trainee.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
