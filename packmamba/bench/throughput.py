"""Packed, padded and one-document-at-a-time training on the same documents, timed.

Every mode runs whole training steps (forward, backward, AdamW) of the same model over the same documents; only real
tokens count. Before anything is timed, all modes must give the same loss on the same parameters, so that nothing is
compared that does not compute the same thing. Needs torch, triton and numpy only.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from packmamba.config import ModelConfig
from packmamba.data.collate import collate
from packmamba.data.packers import Packs, pack
from packmamba.model import HybridLM
from packmamba.packing import PackedBatch

MODES = {"packed": "best_fit_decreasing", "padded": "padded", "single": "single"}
"""Modes by name, and the packing strategy behind each."""

LOSS_TOLERANCE = 1e-5
"""Largest relative difference between two modes' losses on the same documents and parameters, in fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeResult:
    """What one mode took for one pass over the documents."""

    mode: str
    strategy: str
    num_documents: int
    num_tokens: int
    """Real tokens of one pass; padding is not counted."""
    num_steps: int
    """Optimiser steps of one pass."""
    padding_fraction: float
    """Padding tokens ÷ all tokens the model processed."""
    loss: float
    """Mean over targets at the initial parameters, nats."""
    seconds: tuple[float, ...]
    """Duration of each pass."""

    @property
    def tokens_per_second(self) -> float:
        """Real tokens ÷ the median duration."""
        return self.num_tokens / statistics.median(self.seconds)

    @property
    def slowest(self) -> float:
        return self.num_tokens / max(self.seconds)

    @property
    def fastest(self) -> float:
        return self.num_tokens / min(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


class _Mode:
    """One mode's batches, model and optimiser."""

    def __init__(
        self, name: str, config: ModelConfig, documents: Sequence[np.ndarray], capacity: int, device: torch.device
    ) -> None:
        if name not in MODES:
            raise ValueError(f"unknown mode {name!r}; available: {', '.join(MODES)}")
        self.name = name
        self.documents = documents
        packs = pack([len(document) for document in documents], capacity, MODES[name])
        self.batches = [_batch(documents, packs, i).to(device) for i in range(len(packs))]
        torch.manual_seed(0)
        self.model = HybridLM(config).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.seconds: list[float] = []

    @torch.no_grad()
    def mean_loss(self) -> float:
        total = sum(self.model(batch.input_ids, batch.packing, batch.labels).item() for batch in self.batches)
        return total / sum(batch.num_targets for batch in self.batches)

    def step(self, batch: PackedBatch) -> None:
        loss = self.model(batch.input_ids, batch.packing, batch.labels) / max(batch.num_targets, 1)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed_pass(self) -> None:
        _synchronize(self.batches[0].input_ids.device)
        start = time.perf_counter()
        for batch in self.batches:
            self.step(batch)
        _synchronize(self.batches[0].input_ids.device)
        self.seconds.append(time.perf_counter() - start)

    def result(self, loss: float) -> ModeResult:
        tokens = sum(batch.num_tokens for batch in self.batches)
        processed = sum(batch.packing.num_tokens for batch in self.batches)
        return ModeResult(
            mode=self.name,
            strategy=MODES[self.name],
            num_documents=len(self.documents),
            num_tokens=tokens,
            num_steps=len(self.batches),
            padding_fraction=1 - tokens / processed,
            loss=loss,
            seconds=tuple(self.seconds),
        )


def compare_modes(
    config: ModelConfig,
    documents: Sequence[np.ndarray],
    capacity: int,
    *,
    modes: Sequence[str] = tuple(MODES),
    device: torch.device | str = "cpu",
    repeats: int = 3,
    on_pass: Callable[[str], None] = lambda mode: None,
) -> list[ModeResult]:
    """Trains on `documents` (token ids, each of at least one token) in every mode and times it.

    capacity: tokens of a pack, or of a padded batch, at most. The passes of the modes alternate, so that a drift of the
    machine's speed touches all of them; each mode's first pass is a warm-up and is not counted. `on_pass` is called
    with the mode's name after every pass, warm-ups included.

    Raises ValueError for an unknown mode, RuntimeError if two modes disagree about the loss of the same documents.
    """
    runs = [_Mode(name, config, documents, capacity, torch.device(device)) for name in modes]
    losses = [run.mean_loss() for run in runs]
    for run, loss in zip(runs, losses, strict=True):
        if not math.isclose(loss, losses[0], rel_tol=LOSS_TOLERANCE):
            raise RuntimeError(
                f"mode {run.name!r} has loss {loss:.7f} where {runs[0].name!r} has {losses[0]:.7f} on the same "
                "documents and parameters: they do not compute the same thing, so their speeds are not compared"
            )
    for counted in range(repeats + 1):
        for run in runs:
            run.timed_pass()
            if counted == 0:
                run.seconds.clear()
            on_pass(run.name)
    return [run.result(loss) for run, loss in zip(runs, losses, strict=True)]


def _batch(documents: Sequence[np.ndarray], packs: Packs, index: int) -> PackedBatch:
    pieces = packs[index]
    tokens = [documents[doc][start : start + length] for doc, start, length in zip(*pieces, strict=True)]
    row_length = None if packs.row_lengths is None else int(packs.row_lengths[index])
    return collate(tokens, pieces.doc, row_length=row_length)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
