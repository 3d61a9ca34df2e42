"""Training on the same documents in several ways, timed.

Every mode runs whole training steps (forward, backward, AdamW) of the same model over the same documents; only real
tokens count. Before anything is timed, all modes must give the same loss on the same parameters, so that nothing is
compared that does not compute the same thing. Needs torch, triton and numpy only.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from packmamba.compare.memory import bytes_kept, peak_bytes, reset_peak
from packmamba.compare.modes import Mode, make_batches, parse_mode
from packmamba.compare.peers import peer_model, why_missing
from packmamba.config import ComputeOptions, ModelConfig
from packmamba.metrics import peak_flops
from packmamba.model import HybridLM
from packmamba.model.flops import training_flops
from packmamba.packing import PackedBatch

MODES = ("packed", "padded", "single")
"""What is compared where nothing is said."""

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]

LOSS_TOLERANCE = {"32-true": 1e-5, "bf16-mixed": 1e-3, "bf16-true": 5e-3}
"""Largest relative difference between two modes' losses on the same documents and parameters, by precision."""


@dataclass(frozen=True, kw_only=True)
class ModeResult:
    """What one mode took for one pass over the documents."""

    mode: str
    status: str = "ok"
    """`ok`; else `out of memory`, `not measured`, or of a peer `missing` or `failed`."""
    detail: str = ""
    """Why, where the status is not `ok`."""
    num_documents: int = 0
    num_tokens: int = 0
    """Real tokens of one pass; padding is not counted."""
    num_steps: int = 0
    """Optimiser steps of one pass."""
    padding_fraction: float = 0.0
    """Padding tokens ÷ all tokens the model processed."""
    largest_batch: int = 0
    """Tokens of the largest batch, padding included."""
    loss: float | None = None
    """Mean over targets at the initial parameters, nats."""
    seconds: tuple[float, ...] = ()
    """Duration of each pass."""
    optimizer_seconds: tuple[float, ...] = ()
    """The optimiser's share of them."""
    flops: int = 0
    """FLOPs of one pass over the real tokens, forward and backward, by formula."""
    activation_bytes_per_token: float | None = None
    """What a forward of the largest batch keeps for its backward, for each of its real tokens."""
    peak_bytes: int | None = None
    """Most memory allocated during a timed pass, parameters and optimiser included; None but on CUDA."""
    mfu: float | None = None
    """Model FLOP utilisation of the median pass; None where the device's peak is not known."""

    @property
    def tokens_per_second(self) -> float:
        """Real tokens ÷ the median duration; 0 without times."""
        return self.num_tokens / statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def forward_backward_tokens_per_second(self) -> float:
        """The same without the optimiser's share."""
        times = [total - own for total, own in zip(self.seconds, self.optimizer_seconds, strict=True)]
        return self.num_tokens / statistics.median(times) if times else 0.0

    @property
    def slowest(self) -> float:
        return self.num_tokens / max(self.seconds) if self.seconds else 0.0

    @property
    def fastest(self) -> float:
        return self.num_tokens / min(self.seconds) if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "tokens_per_second": self.tokens_per_second,
            "forward_backward_tokens_per_second": self.forward_backward_tokens_per_second,
        }


class Trainee:
    """A model with its optimiser, on a device, in a precision."""

    def __init__(self, model: HybridLM, device: torch.device, precision: Precision) -> None:
        self.device = device
        self.model = model.to(device, torch.bfloat16 if precision == "bf16-true" else torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=device.type == "cuda")
        self._mixed = precision == "bf16-mixed"

    def loss(self, batch: PackedBatch) -> Tensor:
        """The mean over the batch's targets."""
        with self.autocast():
            total = self.model.loss(batch.input_ids, batch.packing, batch.labels)
        return total / max(batch.num_targets, 1)

    def step(self, batch: PackedBatch, clock: Clock | None = None) -> None:
        """One training step. clock: stamped before the optimiser's part and after it."""
        self.loss(batch).backward()
        if clock is not None:
            clock.stamp()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if clock is not None:
            clock.stamp()

    @torch.no_grad()
    def mean_loss(self, batches: Sequence[PackedBatch]) -> float:
        """Over all targets of all batches."""
        total = sum(self.loss(batch.to(self.device)).item() * max(batch.num_targets, 1) for batch in batches)
        return total / max(1, sum(batch.num_targets for batch in batches))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision's context of a forward."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._mixed else nullcontext()


class Clock:
    """Time stamps that do not make a GPU wait."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.stamps: list[Any] = []

    def stamp(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.stamps.append(event)
        else:
            self.stamps.append(time.perf_counter())

    def seconds(self, begin: int, end: int) -> float:
        """Between two stamps, by number. On CUDA only after a synchronisation."""
        first, second = self.stamps[begin], self.stamps[end]
        return first.elapsed_time(second) / 1e3 if self.cuda else second - first


class _Run:
    """One mode's batches and what has been measured of it so far."""

    def __init__(self, mode: Mode, config: ModelConfig, documents: Sequence[np.ndarray], capacity: int) -> None:
        self.mode = mode
        self.batches = make_batches(mode, documents, capacity)
        self.seconds: list[float] = []
        self.optimizer_seconds: list[float] = []
        tokens = sum(batch.num_tokens for batch in self.batches)
        processed = sum(batch.packing.num_tokens for batch in self.batches)
        self.found = ModeResult(
            mode=str(mode),
            num_documents=len(documents),
            num_tokens=tokens,
            num_steps=len(self.batches),
            padding_fraction=1 - tokens / processed,
            largest_batch=max(batch.packing.num_tokens for batch in self.batches),
            flops=training_flops(config, [len(document) for document in documents]),
        )

    @property
    def running(self) -> bool:
        return self.found.status == "ok"

    def check(self, trainee: Trainee) -> None:
        """The loss, and what the largest batch's forward keeps."""
        largest = max(self.batches, key=lambda batch: batch.packing.num_tokens).to(trainee.device)
        kept = bytes_kept(lambda: trainee.loss(largest), [*trainee.model.parameters(), largest.input_ids])
        self.found = replace(
            self.found,
            loss=trainee.mean_loss(self.batches),
            activation_bytes_per_token=kept / max(1, largest.num_tokens),
        )

    def pass_once(self, trainee: Trainee, *, counted: bool) -> None:
        device = trainee.device
        reset_peak(device)
        clock = Clock(device)
        _synchronize(device)
        start = time.perf_counter()
        for batch in self.batches:
            trainee.step(batch.to(device), clock)
        _synchronize(device)
        seconds = time.perf_counter() - start
        self.found = replace(self.found, peak_bytes=peak_bytes(device))
        if counted:
            self.seconds.append(seconds)
            self.optimizer_seconds.append(sum(clock.seconds(2 * i, 2 * i + 1) for i in range(len(self.batches))))

    def stop(self, status: str, detail: str) -> None:
        self.found = replace(self.found, status=status, detail=detail)

    def result(self, peak: float | None) -> ModeResult:
        """peak: FLOP/s of the device, None where they are not known."""
        if self.running and not self.seconds:
            return replace(self.found, status="not measured", detail="interrupted before a pass was timed")
        times = {"seconds": tuple(self.seconds), "optimizer_seconds": tuple(self.optimizer_seconds)}
        if not self.running or peak is None:
            return replace(self.found, **times)
        return replace(self.found, **times, mfu=self.found.flops / (statistics.median(self.seconds) * peak))


class Comparison:
    """Training on `documents` (token ids, each of at least one token) in several modes, timed.

    capacity: tokens of a pack, or of a padded batch without a number of rows, at most. expected_loss: what the modes
    must find on the untrained model, if it is known already. compute: how the model is computed. A mode that runs out
    of memory, and a peer that is missing or fails, says so in its result; the others go on.

    Raises UsageError for an unknown mode or a document longer than `capacity`.
    """

    def __init__(
        self,
        config: ModelConfig,
        documents: Sequence[np.ndarray],
        capacity: int,
        *,
        modes: Sequence[str] = MODES,
        device: torch.device | str = "cpu",
        precision: Precision = "32-true",
        expected_loss: float | None = None,
        compute: ComputeOptions | None = None,
    ) -> None:
        self.config, self.compute = config, compute or ComputeOptions()
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.loss = expected_loss
        self._runs = [_Run(parse_mode(name), config, documents, capacity) for name in modes]

    @property
    def results(self) -> list[ModeResult]:
        """Each mode's result, as far as it has been measured."""
        peak = peak_flops(self.device, torch.float32 if self.precision == "32-true" else torch.bfloat16)
        return [run.result(peak) for run in self._runs]

    def run(self, repeats: int = 3, on_pass: Callable[[str], None] = lambda mode: None) -> list[ModeResult]:
        """Times every mode `repeats` times. `on_pass` is called with the mode's name after every pass.

        The passes of the modes alternate, so that a drift of the machine's speed touches all of them; each mode's first
        pass is a warm-up and is not counted. Peers come last, with a model of their own that has the same parameters.

        Raises RuntimeError if two modes disagree about the loss of the same documents.
        """
        own = [run for run in self._runs if run.mode.peer is None]
        peers = [run for run in self._runs if run.mode.peer is not None]
        torch.manual_seed(0)
        made = [HybridLM(self.config, self.compute)]
        initial = {name: value.clone() for name, value in made[0].state_dict().items()} if peers else {}
        self._time_group(own, made.pop, repeats, on_pass)  # nobody else holds it, so that the next model has its memory
        made.clear()
        _release(self.device)
        for run in peers:
            if reason := why_missing(run.mode, self.config):
                run.stop("missing", reason)

        def with_peers_mixers() -> HybridLM:
            model = peer_model(self.config, self.compute)
            model.load_state_dict(initial)
            return model

        self._time_group([run for run in peers if run.running], with_peers_mixers, repeats, on_pass)
        return self.results

    def _time_group(
        self,
        runs: Sequence[_Run],
        make_model: Callable[[], HybridLM],
        repeats: int,
        on_pass: Callable[[str], None],
    ) -> None:
        """Checks and times modes that share a model."""
        if not runs:
            return
        try:
            trainee = Trainee(make_model(), self.device, self.precision)
        except torch.OutOfMemoryError as error:
            for run in runs:
                run.stop("out of memory", f"the model itself: {str(error).splitlines()[0]}")
            return
        for run in runs:
            self._guarded(run, lambda run=run: run.check(trainee))
            self._require_same_loss(run)
        for i in range(repeats + 1):
            for run in runs:
                if run.running:
                    self._guarded(run, lambda run=run, i=i: run.pass_once(trainee, counted=i > 0))
                on_pass(str(run.mode))

    def _guarded(self, run: _Run, action: Callable[[], None]) -> None:
        """To run out of memory is a result, and so is whatever a peer raises."""
        try:
            action()
        except torch.OutOfMemoryError as error:
            run.stop("out of memory", str(error).splitlines()[0])
        except Exception as error:
            if run.mode.peer is None:
                raise
            run.stop("failed", f"{type(error).__name__}: {error}")
        if not run.running:
            _release(self.device)

    def _require_same_loss(self, run: _Run) -> None:
        loss = run.found.loss
        if loss is None or run.mode.kind == "dense":  # joined documents leak into each other: another loss
            return
        if self.loss is None:
            self.loss = loss
        elif not math.isclose(loss, self.loss, rel_tol=LOSS_TOLERANCE[self.precision]):
            problem = (
                f"mode {str(run.mode)!r} has loss {loss:.7f} where {self.loss:.7f} is expected of the same documents "
                "and parameters: they do not compute the same thing, so their speeds are not compared"
            )
            if run.mode.peer is None:
                raise RuntimeError(problem)
            run.stop("failed", problem)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
