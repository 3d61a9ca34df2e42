"""What is logged of an optimiser step: loss, learning rate, gradient norm, throughput, memory."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from packmamba.config import ModelConfig
from packmamba.metrics import StepMeter, peak_flops, real_flops
from packmamba.packing import PackedBatch
from packmamba.training.lightning_compat import dtype_of

SHOWN = ("train/loss", "tokens_per_second")
"""The numbers that the progress bar has too."""


class StepLog:
    """Adds up the micro-batches of an optimiser step, and logs the step where the Trainer wants a row."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.meter = StepMeter()
        self.peak_flops: float | None = None

    def start(self, module: LightningModule) -> None:
        """Before the first step: finds out what the device could do, and starts the clock."""
        self.peak_flops = peak_flops(module.device, dtype_of(module.trainer.precision))
        self.meter = StepMeter()

    def add(self, batch: PackedBatch, loss_sum: Tensor) -> None:
        """One micro-batch. loss_sum: the sum of its token losses, detached."""
        self.meter.add(batch, loss_sum, real_flops(self.config, batch) if self.peak_flops else 0)

    def write(self, module: LightningModule, optimizer_step: dict[str, Tensor | float]) -> None:
        """Logs the optimiser step that has just been taken, as numbers on the host: Lightning would make a tensor on
        the device of a Python number, and wait for it. optimizer_step: what is known of it besides."""
        trainer: Any = module.trainer
        totals = self.meter.totals(module.device)
        if trainer.world_size > 1:
            totals = trainer.strategy.reduce(totals, reduce_op="sum")
        assert isinstance(totals, Tensor)
        loss_sum, targets, tokens, padding, documents, window_tokens, window_flops = totals.tolist()
        seconds = self.meter.window_seconds()
        metrics = {
            "train/loss": loss_sum / max(targets, 1.0),
            "tokens_per_second": window_tokens / seconds,
            **{name: float(value) for name, value in optimizer_step.items()},
            "padding_fraction": padding / (tokens + padding),
            "tokens_per_step": tokens,
            "documents_per_step": documents,
        }
        if self.peak_flops is not None:
            metrics["mfu"] = window_flops / (seconds * self.peak_flops * trainer.world_size)
        if module.device.type == "cuda":
            metrics["gpu_memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        for name, value in metrics.items():
            number = torch.tensor(value, dtype=torch.float32)
            module.log(name, number, on_step=True, on_epoch=False, prog_bar=name in SHOWN, batch_size=1)
