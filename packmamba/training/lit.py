"""Training as a LightningModule: the loss over a whole optimiser step, what changes the weights, evaluation.

lit = LitHybridLM(ModelConfig(layer_pattern="11*1", d_model=128, vocab_size=258), learning_rate=1e-3)
Trainer(max_steps=100, gradient_clip_val=1.0).fit(lit, datamodule)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from packmamba.config import ComputeOptions, ModelConfig
from packmamba.errors import UsageError
from packmamba.metrics import DocumentLosses, DocumentLossTable
from packmamba.model import HybridLM, check_token_ids, hidden_matrices, parameter_groups
from packmamba.packing import PackedBatch, Packing
from packmamba.training.compiled import compile_layers
from packmamba.training.lightning_compat import (
    clip_gradients,
    datamodule_of,
    expect_hooks_of_module,
    is_fitting,
    last_step,
    logs_this_step,
    more_batches_follow,
    pass_batches_unchanged,
    scales_gradients,
)
from packmamba.training.named_class import described, restored
from packmamba.training.nonfinite import FiniteCheck, OnNonFinite, check_weights, spread
from packmamba.training.optimizers import AdamW, Optimizer, OptimizerInputs
from packmamba.training.options import check_ranges, check_used
from packmamba.training.resumed import ResumedOptimizer, SavedTraining, ScheduledRate, check_same_config
from packmamba.training.schedules import Cosine, Schedule, learning_rate_factor
from packmamba.training.step_log import StepLog
from packmamba.training.vocabulary import require_vocabulary

__all__ = ["LitHybridLM", "check_same_config", "learning_rate_factor"]

expect_hooks_of_module()


_ADAMW, _COSINE = AdamW(), Cosine()


class LitHybridLM(LightningModule):
    """A HybridLM with its loss, optimiser, schedule and logs.

    The loss of an optimiser step is the mean over all its targets: over every micro-batch of an accumulation group and
    every rank. Expects batches of type `PackedBatch`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        compute: ComputeOptions = ComputeOptions(),  # noqa: B008  (frozen; the command line reads its fields)
        compile: bool = False,
        optimizer: Optimizer = _ADAMW,
        schedule: Schedule = _COSINE,
        learning_rate: float = 1e-3,
        min_learning_rate_ratio: float = 0.1,
        warmup_steps: int = 100,
        decay_steps: int | None = None,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        decay_embeddings: bool = False,
        override_optimizer: bool = False,
        on_nonfinite: OnNonFinite = "stop",
        max_skipped_steps: int = 10,
    ) -> None:
        """A model and how to train it. Parameters are created by `configure_model`, which the Trainer calls.

        Args:
            config: The model. Checkpoints store it as plain dicts, which are accepted here too.
            compute: How the model is computed; may differ from the checkpoint's.
            compile: Whether torch.compile makes kernels of the layers, which takes seconds to minutes at the start;
                attention layers stay as they are.
            optimizer: What changes the weights: AdamW, Muon, AdamW8bit, SGD, or a class of your own.
            schedule: How the learning rate changes after the warm-up: Cosine, WSD, Linear, Constant, or a class of
                your own.
            learning_rate: The peak learning rate.
            min_learning_rate_ratio: The final learning rate, as a fraction of the peak.
            warmup_steps: Optimiser steps of linear warm-up.
            decay_steps: The optimiser step at which the learning rate reaches its minimum; null: the trainer's last
                step.
            weight_decay: Decoupled weight decay. Never applied to A_log, D, biases and norms.
            betas: Adam's decay rates of the two moments.
            eps: Adam's denominator offset.
            decay_embeddings: Whether the embedding, and with it a tied output projection, is decayed too.
            override_optimizer: Whether a resumed run takes optimiser, schedule and their options from this
                configuration where the checkpoint had others; else it refuses them.
            on_nonfinite: What follows a loss or gradient that is NaN or infinite: `stop`; or `skip`, which leaves the
                optimiser step out: weights and moments stay, data and learning rate go on.
            max_skipped_steps: Steps in a row that `skip` leaves out before it stops.

        Raises ValueError for a rate, ratio or step count out of range, and for an option that the optimiser or the
        schedule does not use, naming it.
        """
        super().__init__()
        if isinstance(config, dict):
            config = ModelConfig.from_dict(config)
        if isinstance(compute, dict):
            compute = ComputeOptions.from_dict(compute)
        optimizer = restored(optimizer, Optimizer, "optimizer")
        schedule = restored(schedule, Schedule, "schedule")
        options = {
            "compile": compile,
            "learning_rate": learning_rate,
            "min_learning_rate_ratio": min_learning_rate_ratio,
            "warmup_steps": warmup_steps,
            "decay_steps": decay_steps,
            "weight_decay": weight_decay,
            "betas": tuple(betas),
            "eps": eps,
            "decay_embeddings": decay_embeddings,
            "on_nonfinite": on_nonfinite,
            "max_skipped_steps": max_skipped_steps,
        }
        check_ranges(options)
        check_used(options, _DEFAULTS, optimizer, schedule)
        models = {"config": config.to_dict(), "compute": compute.to_dict()}
        named = {"optimizer": described(optimizer), "schedule": described(schedule)}
        self.save_hyperparameters({**models, **named, **options})
        self.config = config
        self.compute = compute
        self.compile_layers = compile
        self.optimizer = optimizer
        self.schedule = schedule
        self.learning_rate = learning_rate
        self.min_learning_rate_ratio = min_learning_rate_ratio
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.decay_embeddings = decay_embeddings
        self.override_optimizer = override_optimizer
        self.model: HybridLM | None = None
        self.document_losses: DocumentLosses | None = None
        """The last validation's, test's or prediction's losses, document by document."""
        self._finite = FiniteCheck(on_nonfinite, max_skipped_steps)
        self._step_log = StepLog(config)
        self.losses_of_sets: dict[str, DocumentLosses] = {}
        """The same of each validation set, where the data module names several."""
        self._tables = [DocumentLossTable()]
        self._optimizer_step: dict[str, Tensor | float] | None = None
        self._decay_end: int | None = None
        self._resumed: SavedTraining | None = None

    # What the Trainer calls before the first batch, in this order

    def setup(self, stage: str) -> None:
        """Raises UsageError if the data's vocabulary is larger than the model's."""
        require_vocabulary(getattr(datamodule_of(self.trainer), "vocab_size", None), self.config)
        pass_batches_unchanged(self.trainer)

    def configure_model(self) -> None:
        """Creates the parameters, once."""
        if self.model is None:
            self.model = HybridLM(self.config, self.compute)
            if self.compile_layers:
                compile_layers(self.model)

    def configure_optimizers(self) -> Any:
        model = self._built()
        groups = parameter_groups(model, weight_decay=self.weight_decay, decay_embeddings=self.decay_embeddings)
        # One kernel for all parameters on a GPU; None is torch's default, which elsewhere is one parameter at a time.
        on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
        fused = True if on_gpu and not scales_gradients(self.trainer) else None
        optimizer = self.optimizer.build(
            OptimizerInputs(
                groups=groups,
                matrices=hidden_matrices(model),
                learning_rate=self.learning_rate,
                betas=self.betas,
                eps=self.eps,
                fused=fused,
            )
        )
        if "decay_steps" not in self.schedule.unused:
            self._decay_end = self.decay_steps or self._total_steps()

        def factor(step: int) -> float:
            return self.schedule.factor(
                step,
                warmup_steps=self.warmup_steps,
                decay_steps=self._decay_end or 0,
                min_ratio=self.min_learning_rate_ratio,
            )

        if self._resumed is not None:
            optimizer.register_load_state_dict_pre_hook(
                ResumedOptimizer(self._resumed, dict(self.hparams), self._decay_end, factor, self.override_optimizer)
            )
        scheduler = ScheduledRate(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> int:
        last = last_step(self.trainer)
        if last is None:
            raise UsageError(
                "the learning-rate schedule needs to know its last step, which max_epochs does not tell of a stream: "
                "set trainer.max_steps, or model.decay_steps"
            )
        return last

    def _built(self) -> HybridLM:
        if self.model is None:
            raise RuntimeError("the model has no parameters yet: call configure_model() first")
        return self.model

    # Batches

    def on_before_batch_transfer(self, batch: PackedBatch, dataloader_idx: int) -> PackedBatch:
        """Raises UsageError for a token id the embedding has no row for, while the ids are still on the host."""
        check_token_ids(batch.input_ids, self.config.vocab_size)
        return batch

    def transfer_batch_to_device(self, batch: PackedBatch, device: torch.device, dataloader_idx: int) -> PackedBatch:
        """The batch on `device`. From page-locked memory, it is copied while the host goes on; Lightning would wait."""
        return batch.to(device, non_blocking=True)

    def forward(self, input_ids: Tensor, packing: Packing) -> Tensor:
        """Logits (T, V) of a pack. input_ids: int64 (T,)."""
        return self._built()(input_ids, packing)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        loss_sum = self._built().loss(batch.input_ids, batch.packing, batch.labels)
        self._step_log.add(batch, loss_sum.detach())
        self._finite.add(batch_idx, batch, loss_sum.detach())
        # Lightning divides by accumulate_grad_batches and DDP averages over ranks; both are undone, so that the step's
        # gradient is that of the sum over all its tokens divided by all its targets.
        copies = self.trainer.accumulate_grad_batches * self.trainer.world_size
        if batch.step_targets is None and copies > 1:
            raise UsageError(
                f"batch {batch_idx} does not know step_targets, the targets of its whole optimiser step, which "
                f"accumulate_grad_batches = {self.trainer.accumulate_grad_batches} on {self.trainer.world_size} "
                "ranks needs; PackedDataModule fills it in"
            )
        step_targets = batch.num_targets if batch.step_targets is None else batch.step_targets
        return loss_sum * spread(copies / max(1, step_targets), loss_sum)

    def on_after_backward(self) -> None:
        if more_batches_follow(self.trainer):
            self._finite.add_norm(self)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips, and keeps the gradient's norm before clipping for the log. Called once an optimiser step.

        Raises NonFiniteError where the loss or the gradient is not finite, as `on_nonfinite` says.
        """
        norm = clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm, norm_wanted=True)
        self._optimizer_step = {"lr": optimizer.param_groups[0]["lr"]}
        if norm is not None:
            self._optimizer_step["grad_norm"] = norm
        self._finite.check(self, optimizer, norm)

    # Logs of training

    def on_train_start(self) -> None:
        self._finite.start()
        self._step_log.start(self)

    def on_train_batch_end(self, outputs: Any, batch: PackedBatch, batch_idx: int) -> None:
        if self._optimizer_step is None:
            return  # in the middle of an accumulation group
        logged = logs_this_step(self.trainer)
        if logged:
            self._finite.flush(self)
            if self._finite.on_nonfinite == "skip":
                self._optimizer_step["skipped_steps"] = self._finite.skipped_steps
            self._step_log.write(self, self._optimizer_step)
        self._optimizer_step = None
        # One window of throughput a logged row: only there does the host wait for the device.
        self._step_log.meter.finish_step(restart_clock=logged)

    def on_train_end(self) -> None:
        self._finite.flush(self)

    # Evaluation: every document's loss, exactly, over all batches and ranks

    def on_validation_start(self) -> None:
        self._step_log.meter.pause()
        self._check_finite()

    def on_validation_end(self) -> None:
        self._step_log.meter.resume()

    def _check_finite(self) -> None:
        """Raises NonFiniteError if training has met a NaN, or, in evaluation, if a weight is one."""
        if is_fitting(self.trainer):
            self._finite.flush(self)
        else:
            check_weights(self)

    on_test_start = on_predict_start = _check_finite

    def on_validation_epoch_start(self) -> None:
        self._tables = [DocumentLossTable() for _ in self._val_names() or ("",)]

    def on_test_epoch_start(self) -> None:
        self._tables = [DocumentLossTable()]

    on_predict_epoch_start = on_test_epoch_start

    def _val_names(self) -> Sequence[str]:
        """The names of several validation sets, in the order of their loaders; empty where there is one."""
        return getattr(datamodule_of(self.trainer), "val_names", ())

    def validation_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._add_document_losses(batch, dataloader_idx if len(self._tables) > 1 else 0)

    def test_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self._add_document_losses(batch)

    def predict_step(self, batch: PackedBatch, batch_idx: int) -> list[dict[str, float | int | None]]:
        """This batch's documents, or pieces of documents, as `DocumentLosses.records` has them; `document_losses` joins
        the pieces when prediction ends."""
        return self._add_document_losses(batch).records()

    def _add_document_losses(self, batch: PackedBatch, table: int = 0) -> DocumentLosses:
        token_losses = self._built().loss(batch.input_ids, batch.packing, batch.labels, reduction="none")
        return self._tables[table].add(batch, token_losses)

    def on_validation_epoch_end(self) -> None:
        losses = [table.result() for table in self._tables]
        self.losses_of_sets = dict(zip(self._val_names(), losses, strict=False))
        for name, of_set in self.losses_of_sets.items():
            self._log_document_losses(f"val/{name}", of_set)
        self._log_document_losses("val", DocumentLosses.of_sets(losses))

    def on_test_epoch_end(self) -> None:
        self._log_document_losses("test", self._tables[0].result())

    def on_predict_epoch_end(self) -> None:
        self.document_losses = self._tables[0].result()

    def _log_document_losses(self, prefix: str, losses: DocumentLosses) -> None:
        self.document_losses = losses
        for name, value in losses.summary().items():
            self.log(f"{prefix}/{name}", value, prog_bar=name == "loss", batch_size=1, sync_dist=True)

    # Checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UsageError if the checkpoint's model configuration is another one, naming each field that differs."""
        options = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        stored = options.get("config")
        if stored is None:
            raise UsageError("the checkpoint holds no model configuration; it was not written by LitHybridLM")
        check_same_config(stored, self.config)
        self._resumed = SavedTraining.of(checkpoint, options)
        self._finite.load_state_dict(checkpoint.get("nonfinite", {}))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises NonFiniteError rather than save what a NaN has changed."""
        self._finite.flush(self)
        checkpoint["decay_end"] = self._decay_end
        checkpoint["nonfinite"] = self._finite.state_dict()


_DEFAULTS = {name: option.default for name, option in inspect.signature(LitHybridLM).parameters.items()}
