"""The numbers of training and evaluation, as plain arithmetic: step totals, throughput, losses document by document.

Sums are kept, never means of means: a ratio is taken once, at the end, over every batch and every rank.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from packmamba.config import ModelConfig
from packmamba.model.flops import training_flops
from packmamba.packing import PackedBatch


def count_documents(batch: PackedBatch) -> int:
    """Documents of a batch; sequences that only hold padding are not counted."""
    if batch.doc_ids is not None:
        return int((batch.doc_ids >= 0).sum())
    return batch.packing.num_seqs - (1 if batch.num_padding else 0)


def real_flops(config: ModelConfig, batch: PackedBatch) -> float:
    """FLOPs of a training step on the batch's real tokens: those of all its tokens, times the fraction of real ones.

    Exact without padding; with padding, attention's quadratic part is shared out evenly.
    """
    return training_flops(config, batch.packing) * batch.num_tokens / batch.packing.num_tokens


@dataclass
class StepMeter:
    """Totals of one optimiser step over its micro-batches, and throughput since the last restart of the clock.

    `add` each micro-batch, read `totals` once the step is done, then `finish_step`. Seconds come from
    `time.perf_counter`; validation is cut out with `pause` and `resume`.
    """

    loss_sum: Tensor | float = 0.0
    num_targets: int = 0
    num_tokens: int = 0
    num_padding: int = 0
    num_documents: int = 0
    window_tokens: int = 0
    window_flops: float = 0.0
    _window_start: float = field(default_factory=time.perf_counter)
    _paused_at: float | None = None

    def add(self, batch: PackedBatch, loss_sum: Tensor, flops: float) -> None:
        """One micro-batch. loss_sum: the sum of its token losses, detached. flops: forward and backward."""
        self.loss_sum = self.loss_sum + loss_sum
        self.num_targets += batch.num_targets
        self.num_tokens += batch.num_tokens
        self.num_padding += batch.num_padding
        self.num_documents += count_documents(batch)
        self.window_tokens += batch.num_tokens
        self.window_flops += flops

    def totals(self, device: torch.device) -> Tensor:
        """(7,): loss sum, targets, tokens, padding, documents, window tokens, window FLOPs; to be summed over ranks.

        fp64, or fp32 where the device has no fp64. Does not synchronise with the device.
        """
        dtype = torch.float32 if device.type == "mps" else torch.float64
        counts = [self.num_targets, self.num_tokens, self.num_padding, self.num_documents]
        host = torch.tensor([0, *counts, self.window_tokens, self.window_flops], dtype=dtype)
        totals = host.to(device, non_blocking=True)
        totals[0] = self.loss_sum
        return totals

    def window_seconds(self) -> float:
        """Seconds since the clock was restarted, pauses left out."""
        return max(time.perf_counter() - self._window_start, 1e-9)

    def finish_step(self, *, restart_clock: bool) -> None:
        """Forgets the step's totals; with `restart_clock`, throughput is measured from here on."""
        self.loss_sum = 0.0
        self.num_targets = self.num_tokens = self.num_padding = self.num_documents = 0
        if restart_clock:
            self.restart_clock()

    def restart_clock(self) -> None:
        self.window_tokens, self.window_flops = 0, 0.0
        self._window_start = time.perf_counter()

    def pause(self) -> None:
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._window_start += time.perf_counter() - self._paused_at
        self._paused_at = None


@dataclass(frozen=True, slots=True)
class DocumentLosses:
    """The losses of D documents, each summed over all of its pieces."""

    doc_ids: np.ndarray
    """int64 (D,): rows of the dataset; where a batch did not say, negative numbers that are not repeated."""
    tokens: np.ndarray
    """int64 (D,): padding left out."""
    targets: np.ndarray
    """int64 (D,): tokens with a loss."""
    loss_sums: np.ndarray
    """float64 (D,): nats."""

    @classmethod
    def of_sets(cls, sets: Sequence[DocumentLosses]) -> DocumentLosses:
        """The documents of several sets, one set after the other; equal ids of two sets stay two documents."""
        columns = ("doc_ids", "tokens", "targets", "loss_sums")
        return cls(**{name: np.concatenate([getattr(part, name) for part in sets]) for name in columns})

    @property
    def mean_loss(self) -> float:
        """Nats a target, over all targets; NaN where there is none."""
        return float(self.loss_sums.sum() / self.targets.sum()) if self.targets.sum() else float("nan")

    def summary(self) -> dict[str, float]:
        """`loss`: mean over targets. `perplexity`: exp of it. `document_perplexity`: exp of the mean over documents of
        each document's mean loss; `document_perplexity_median`: the median document's. A document without a target (a
        single token) is in none of them. `documents`: how many have one."""
        scored = self.targets > 0
        means = self.loss_sums[scored] / self.targets[scored]
        with np.errstate(over="ignore"):
            return {
                "loss": self.mean_loss,
                "perplexity": float(np.exp(self.mean_loss)),
                "document_perplexity": float(np.exp(means.mean())) if means.size else float("nan"),
                "document_perplexity_median": float(np.exp(np.median(means))) if means.size else float("nan"),
                "documents": float(means.size),
            }

    def records(self) -> list[dict[str, float | int | None]]:
        """One dict a document, by ascending id: document, tokens, targets, nll (nats a target), perplexity.

        `document` is null where the batch did not say; nll and perplexity are null where there is no target.
        """
        records = []
        for doc_id, tokens, targets, loss_sum in zip(
            self.doc_ids.tolist(), self.tokens.tolist(), self.targets.tolist(), self.loss_sums.tolist(), strict=True
        ):
            nll = loss_sum / targets if targets else None
            with np.errstate(over="ignore"):
                perplexity = None if nll is None else float(np.exp(nll))
            document = doc_id if doc_id >= 0 else None
            records.append(
                {"document": document, "tokens": tokens, "targets": targets, "nll": nll, "perplexity": perplexity}
            )
        return records


class DocumentLossTable:
    """Collects losses document by document, batch after batch; pieces of one document are joined by its id."""

    def __init__(self) -> None:
        self._batches: list[DocumentLosses] = []
        self._unknown = 0

    def add(self, batch: PackedBatch, token_losses: Tensor) -> DocumentLosses:
        """Adds, and returns, the losses of one batch's documents. Padding is left out.

        token_losses: float (T,), 0 where there is no target. They are copied to the host and summed there in fp64.
        """
        starts = batch.packing.host_cu_seqlens[:-1].numpy()
        losses = token_losses.detach().float().cpu().double().numpy()
        has_target = (batch.labels != batch.IGNORE_INDEX).cpu().numpy()
        if batch.doc_ids is None:
            doc_ids = -1 - np.arange(self._unknown, self._unknown + len(starts))
            self._unknown += len(starts)
            keep = slice(None)
        else:
            doc_ids = batch.doc_ids.numpy()
            keep = doc_ids >= 0
        added = DocumentLosses(
            doc_ids=doc_ids[keep],
            tokens=_real_lengths(batch, has_target)[keep],
            targets=np.add.reduceat(has_target, starts, dtype=np.int64)[keep],
            loss_sums=np.add.reduceat(losses, starts)[keep],
        )
        self._batches.append(added)
        return added

    def result(self) -> DocumentLosses:
        """Everything added so far, on every rank of the default process group, one row a document."""
        parts = self._batches
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = self._gather(parts)
        doc_ids = np.concatenate([part.doc_ids for part in parts] or [np.empty(0, dtype=np.int64)])
        unique, position = np.unique(doc_ids, return_inverse=True)

        def total(column: list[np.ndarray]) -> np.ndarray:
            return np.bincount(position, weights=np.concatenate(column or [np.empty(0)]), minlength=len(unique))

        return DocumentLosses(
            doc_ids=unique,
            tokens=total([part.tokens for part in parts]).astype(np.int64),
            targets=total([part.targets for part in parts]).astype(np.int64),
            loss_sums=total([part.loss_sums for part in parts]),
        )

    @staticmethod
    def _gather(parts: list[DocumentLosses]) -> list[DocumentLosses]:
        gathered: list[list[DocumentLosses]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(gathered, parts)
        for rank, theirs in enumerate(gathered):
            for part in theirs:
                part.doc_ids[part.doc_ids < 0] -= rank << 40  # ids made up on one rank must not meet another's
        return [part for theirs in gathered for part in theirs]


def _real_lengths(batch: PackedBatch, has_target: np.ndarray) -> np.ndarray:
    """int64 (S,): tokens of each sequence, filler left out. Where the batch does not say, every token but a sequence's
    first is taken for a target, and filler for what comes after the last one."""
    if batch.real_lengths is not None:
        return batch.real_lengths.numpy()
    lengths = np.array(batch.packing.host_lengths)
    if not batch.num_padding:
        return lengths
    starts = batch.packing.host_cu_seqlens[:-1].numpy()
    positions = np.arange(batch.packing.num_tokens) - np.repeat(starts, lengths)
    return np.maximum.reduceat(np.where(has_target, positions + 2, 1), starts)


# Dense peaks that lightning's table has not, or lists with structured sparsity counted in: NVIDIA's data sheets,
# divided by two where they say "with sparsity". FLOP/s by torch.cuda.get_device_name, then by dtype.
_DENSE_PEAKS = {
    "NVIDIA H200": {torch.bfloat16: 989.5e12, torch.float16: 989.5e12, torch.float32: 66.9e12},
    "NVIDIA H200 NVL": {torch.bfloat16: 835.5e12, torch.float16: 835.5e12, torch.float32: 60.0e12},
    "NVIDIA H100 NVL": {torch.bfloat16: 835.5e12, torch.float16: 835.5e12, torch.float32: 60.0e12},
    "NVIDIA L40S": {torch.bfloat16: 362e12, torch.float16: 362e12, torch.float32: 91.6e12},
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense matrix FLOP/s the chip's data sheet promises, or None where the chip is not known (a CPU, for one)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if name in _DENSE_PEAKS:
        peaks = _DENSE_PEAKS[name]
        if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            return peaks[torch.bfloat16] / 2  # TF32
        return peaks.get(dtype)
    if importlib.util.find_spec("lightning") is None:  # benchmarks run without it
        return None
    from lightning.fabric.utilities.throughput import get_available_flops

    return get_available_flops(device, dtype)
