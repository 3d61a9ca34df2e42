"""Losses and gradients that are NaN or infinite: found at every optimiser step, before anything is saved.

A loss that is not finite makes every gradient of its micro-batch NaN (`spread`), and ranks add up their gradients, so
the gradient's norm tells it all, and tells all ranks the same. On a CPU it is read at once. On a GPU it is copied to
the host while training goes on, and read when the next step's gradients are on their way, or earlier where a checkpoint
is saved, a step is logged or validation begins: the host never waits for the step at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from packmamba.errors import NonFiniteError
from packmamba.packing import PackedBatch
from packmamba.training.lightning_compat import checkpoint_saved_last, gradient_scale, scales_gradients

OnNonFinite = Literal["stop", "skip"]
"""What follows a loss or gradient that is not finite."""

SHOWN_DOCUMENTS = 20
"""Documents that a message names; of more, it says how many."""


def spread(factor: float, loss_sum: Tensor) -> Tensor:
    """`factor` as a tensor, but NaN where the loss is not finite: then the product with it has NaN gradients
    everywhere, on whichever rank the loss is. Of finite losses the product is the same to the last bit."""
    return 0.0 * loss_sum.detach() + factor


@dataclass(frozen=True)
class MicroBatch:
    """What a message says of a batch."""

    index: int
    doc_ids: Tensor | None
    loss: Tensor
    """The sum of its token losses, detached, on the device."""

    def __str__(self) -> str:
        ids = [] if self.doc_ids is None else sorted({int(row) for row in self.doc_ids if row >= 0})
        more = f" and {len(ids) - SHOWN_DOCUMENTS} more" if len(ids) > SHOWN_DOCUMENTS else ""
        rows = ", ".join(map(str, ids[:SHOWN_DOCUMENTS])) + more
        return f"batch {self.index} of the epoch (document rows {rows or 'unknown'})"


@dataclass
class Step:
    """An optimiser step whose gradient has not been looked at by the host yet."""

    number: int
    batches: list[MicroBatch] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    """The norm of the accumulated gradient after each micro-batch but the last, where there are several."""
    copied: torch.cuda.Event | None = None
    """When the host knows whether the gradient is finite; None: at once."""
    leaves_weights: bool = True
    """Whether the weights are as they were before the step, if it is a bad one."""


class FiniteCheck:
    """Looks at every optimiser step's gradient; stops training, or leaves the step out, where it is not finite."""

    def __init__(self, on_nonfinite: OnNonFinite, max_skipped_steps: int) -> None:
        """max_skipped_steps: steps in a row that may be left out."""
        self.on_nonfinite = on_nonfinite
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        """Steps left out since training began."""
        self.skipped_in_a_row = 0
        self._step = Step(0)
        self._unread: Step | None = None
        self._on_host: Tensor | None = None
        """float32 (): whether the unread step's gradient is not finite."""

    # While a step is computed

    def start(self) -> None:
        """Before the first step: forgets what a run that was interrupted has left."""
        self._step, self._unread = Step(0), None

    def add(self, index: int, batch: PackedBatch, loss_sum: Tensor) -> None:
        """A micro-batch of the step at hand. loss_sum: detached."""
        self._step.batches.append(MicroBatch(index, batch.doc_ids, loss_sum))

    def add_norm(self, module: LightningModule) -> None:
        """After the backward of a micro-batch that is not the step's last: the norm tells whether it, or a later one,
        was the first whose gradient is not finite."""
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        self._step.norms.append(torch.nn.utils.get_total_norm(gradients))

    def check(self, module: LightningModule, optimizer: torch.optim.Optimizer, norm: Tensor | None) -> None:
        """Between the backward of a step and the change of the weights. norm: of the whole gradient.

        Raises NonFiniteError, at once or for the step before, as `on_nonfinite` says.
        """
        self.flush(module)
        step, self._step = self._step, Step(0)
        if norm is None:
            return
        step.number = module.trainer.global_step
        on_device = leaves_out_on_device(optimizer)
        scaled = scales_gradients(module.trainer)  # the scaler waits for the device anyway
        if reads_later(norm.device) and not scaled and (on_device or self.on_nonfinite == "stop"):
            flag = (~norm.detach().isfinite()).float().reshape(())
            if on_device:
                optimizer.found_inf = flag  # pyright: ignore[reportAttributeAccessIssue]
            step.leaves_weights = on_device
            self._send(step, flag)
            return
        if self._is_bad(module, step, norm):
            self._found(module, step)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # every optimiser leaves such a parameter and its moments alone
        else:
            self.skipped_in_a_row = 0

    def flush(self, module: LightningModule) -> None:
        """Waits until the last step's gradient is known. Raises as `check`."""
        step, self._unread = self._unread, None
        if step is None:
            return
        if step.copied is not None:
            step.copied.synchronize()
        if bool(self._on_host):
            self._found(module, step)
        else:
            self.skipped_in_a_row = 0

    def _send(self, step: Step, is_bad: Tensor) -> None:
        """Copies a step's flag, float32 (), to the host, which does not wait for it."""
        on_gpu = is_bad.device.type == "cuda"
        if self._on_host is None:
            self._on_host = torch.empty((), pin_memory=on_gpu)
        self._on_host.copy_(is_bad, non_blocking=True)
        if on_gpu:
            step.copied = torch.cuda.Event()
            step.copied.record()
        self._unread = step

    def _is_bad(self, module: LightningModule, step: Step, norm: Tensor) -> bool:
        if bool(norm.isfinite()):
            return False
        scale = gradient_scale(module.trainer)
        if scale is None or scale < 1:
            return True
        # Scaled gradients of fp16 overflow now and then: the scaler leaves the step out and lowers the scale. Only a
        # loss that is not finite, on any rank, is none of its business.
        bad = torch.stack([batch.loss for batch in step.batches]).isfinite().logical_not().any().float()
        return bool(module.trainer.strategy.reduce(bad, reduce_op="sum") > 0)

    # What follows

    def _found(self, module: LightningModule, step: Step) -> None:
        where = f"optimiser step {step.number}: {_culprits(module, step)}"
        if step.leaves_weights and any(_bad_weights(module)):
            raise NonFiniteError(f"{where}; the weights are not finite to begin with: take an earlier checkpoint")
        if self.on_nonfinite == "stop":
            advice = "lower model.learning_rate, or leave such steps out: --model.on_nonfinite skip"
            raise NonFiniteError(f"{where}; {_how_to_go_on(module)}; {advice}")
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.max_skipped_steps:
            raise NonFiniteError(
                f"{where}; {self.skipped_in_a_row} steps in a row were left out, more than model.max_skipped_steps "
                f"{self.max_skipped_steps}; {_how_to_go_on(module)}"
            )
        rank_zero_info(f"{where}; the step is left out, {self.skipped_steps} so far")

    # Checkpoints

    def state_dict(self) -> dict[str, int]:
        """Counts of steps left out; empty where there are none."""
        counts = {"skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row}
        return counts if self.skipped_steps else {}

    def load_state_dict(self, counts: dict[str, int]) -> None:
        self.skipped_steps = counts.get("skipped_steps", 0)
        self.skipped_in_a_row = counts.get("skipped_in_a_row", 0)


def reads_later(device: torch.device) -> bool:
    """Whether reading a number from the device would make the host wait for all work that it has given it."""
    return device.type == "cuda"


def leaves_out_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser leaves a step out where its `found_inf` is 1, without the host: fused Adam and AdamW do."""
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and all(
        group.get("fused") for group in optimizer.param_groups
    )


def check_weights(module: LightningModule) -> None:
    """Raises NonFiniteError if a weight is NaN or infinite, naming the first. Waits for the device, once."""
    names = [name for name, _ in module.named_parameters()]
    bad = _bad_weights(module)
    if any(bad):
        path = getattr(module.trainer, "ckpt_path", None)
        raise NonFiniteError(
            f"{sum(bad)} of {len(bad)} weights of {path or 'the model'} are NaN or infinite, the first is "
            f"{names[bad.index(True)]}: nothing can be computed with them; take an earlier checkpoint"
        )


def _bad_weights(module: LightningModule) -> list[bool]:
    bad = [~parameter.detach().isfinite().all() for parameter in module.parameters()]
    return torch.stack(bad).tolist() if bad else []


def _culprits(module: LightningModule, step: Step) -> str:
    """Which loss or gradient it was, and in which batches, of all ranks. Every rank has to call this."""
    if not step.batches:  # a training_step that is not LitHybridLM's
        return "the gradient is not finite"
    here = _known_culprits(step), f"the loss is finite, the gradient is not, in {step.batches[-1]}"
    if module.trainer.world_size == 1:
        return here[0] or here[1]
    ranks: list[tuple[str, str]] = [("", "")] * module.trainer.world_size
    torch.distributed.all_gather_object(ranks, here)
    known = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(ranks) if text]
    # The last backward adds up the gradients of all ranks, so that its norm does not tell whose it was.
    return ", ".join(known or [f"rank {rank}: perhaps {text}" for rank, (_, text) in enumerate(ranks)])


def _known_culprits(step: Step) -> str:
    """This rank's batches with a loss that is not finite, or else the first whose gradient is not, if it is known."""
    losses = torch.stack([batch.loss for batch in step.batches]).tolist()
    bad = [(batch, loss) for batch, loss in zip(step.batches, losses, strict=True) if not math.isfinite(loss)]
    if bad:
        return ", ".join(f"the loss is {loss:g} in {batch}" for batch, loss in bad)
    norms = torch.stack(step.norms).tolist() if step.norms else []
    for batch, norm in zip(step.batches, norms, strict=False):
        if not math.isfinite(norm):
            return f"the loss is finite, the gradient is not, in {batch}"
    return ""


def _how_to_go_on(module: LightningModule) -> str:
    path = checkpoint_saved_last(module.trainer)
    return "no checkpoint has been saved yet" if path is None else f"the last good checkpoint is {path}"
