"""Training as a LightningModule: the loss over a whole optimiser step, AdamW, the schedule, the log.

lit = LitHybridLM(ModelConfig(layer_pattern="11*1", d_model=128, vocab_size=258), learning_rate=1e-3)
Trainer(max_steps=100, gradient_clip_val=1.0).fit(lit, datamodule)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from packmamba.config import ComputeOptions, ModelConfig
from packmamba.errors import UsageError
from packmamba.metrics import DocumentLosses, DocumentLossTable, StepMeter, peak_flops, real_flops
from packmamba.model import HybridLM, check_token_ids, parameter_groups
from packmamba.packing import PackedBatch, Packing
from packmamba.training.lightning_compat import (
    clip_gradients,
    datamodule_of,
    expect_hooks_of_module,
    last_step,
    logs_this_step,
    pass_batches_unchanged,
    scales_gradients,
)

expect_hooks_of_module()


def learning_rate_factor(step: int, *, warmup_steps: int, decay_steps: int, min_ratio: float) -> float:
    """What the peak learning rate is multiplied with at optimiser step `step` (from 0).

    Rises linearly, reaches 1 at step warmup_steps - 1, then falls along half a cosine to min_ratio at decay_steps and
    stays there.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, decay_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def check_same_config(stored: dict[str, Any], config: ModelConfig) -> None:
    """Raises UsageError if a checkpoint's model configuration is not `config`, naming each field with both values.

    ComputeOptions are not part of it: they say how to compute, not what, and may differ.
    """
    differences = [
        f"{name}: {theirs!r} in the checkpoint, {ours!r} in this run"
        for name, theirs, ours in _compare(ModelConfig.from_dict(stored).to_dict(), config.to_dict())
    ]
    if differences:
        raise UsageError("the checkpoint was made with another model configuration: " + "; ".join(differences))


def _compare(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any, Any]]:
    for key in ours | theirs:
        their, our = theirs.get(key), ours.get(key)
        if isinstance(their, dict) and isinstance(our, dict):
            yield from _compare(their, our, f"{prefix}{key}.")
        elif their != our:
            yield f"{prefix}{key}", their, our


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
        learning_rate: float = 1e-3,
        min_learning_rate_ratio: float = 0.1,
        warmup_steps: int = 100,
        decay_steps: int | None = None,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        decay_embeddings: bool = False,
    ) -> None:
        """A model and how to train it. Parameters are created by `configure_model`, which the Trainer calls.

        Args:
            config: The model. Checkpoints store it as plain dicts, which are accepted here too.
            compute: How the model is computed; may differ from the checkpoint's.
            learning_rate: AdamW's peak learning rate.
            min_learning_rate_ratio: The final learning rate, as a fraction of the peak.
            warmup_steps: Optimiser steps of linear warm-up.
            decay_steps: The optimiser step at which the cosine reaches its minimum; null: the trainer's last step.
            weight_decay: AdamW's decoupled weight decay. Never applied to A_log, D, biases and norms.
            betas: AdamW's decay rates of the two moments.
            eps: AdamW's denominator offset.
            decay_embeddings: Whether the embedding, and with it a tied output projection, is decayed too.

        Raises ValueError for a rate, ratio or step count out of range, naming it.
        """
        super().__init__()
        if isinstance(config, dict):
            config = ModelConfig.from_dict(config)
        if isinstance(compute, dict):
            compute = ComputeOptions.from_dict(compute)
        _check_ranges(
            ("learning_rate", learning_rate, learning_rate > 0, "more than 0"),
            ("min_learning_rate_ratio", min_learning_rate_ratio, 0 <= min_learning_rate_ratio <= 1, "from 0 to 1"),
            ("warmup_steps", warmup_steps, warmup_steps >= 0, "0 or more"),
            ("decay_steps", decay_steps, decay_steps is None or decay_steps > 0, "more than 0, or null"),
            ("weight_decay", weight_decay, weight_decay >= 0, "0 or more"),
            ("betas", betas, len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers from 0 to below 1"),
            ("eps", eps, eps > 0, "more than 0"),
        )
        self.config = config
        self.compute = compute
        self.learning_rate = learning_rate
        self.min_learning_rate_ratio = min_learning_rate_ratio
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.decay_embeddings = decay_embeddings
        self.save_hyperparameters(
            {
                "config": config.to_dict(),
                "compute": compute.to_dict(),
                "learning_rate": learning_rate,
                "min_learning_rate_ratio": min_learning_rate_ratio,
                "warmup_steps": warmup_steps,
                "decay_steps": decay_steps,
                "weight_decay": weight_decay,
                "betas": self.betas,
                "eps": eps,
                "decay_embeddings": decay_embeddings,
            }
        )
        self.model: HybridLM | None = None
        self.document_losses: DocumentLosses | None = None
        """The last validation's, test's or prediction's losses, document by document."""
        self.losses_of_sets: dict[str, DocumentLosses] = {}
        """The same of each validation set, where the data module names several."""
        self._meter = StepMeter()
        self._tables = [DocumentLossTable()]
        self._optimizer_step: dict[str, Tensor | float] | None = None
        self._peak_flops: float | None = None

    # What the Trainer calls before the first batch, in this order

    def setup(self, stage: str) -> None:
        """Raises UsageError if the data's vocabulary is larger than the model's."""
        vocab_size = getattr(datamodule_of(self.trainer), "vocab_size", None)
        if vocab_size is not None and vocab_size > self.config.vocab_size:
            raise UsageError(
                f"the data's vocabulary has {vocab_size} tokens, but the model's vocab_size is "
                f"{self.config.vocab_size}; set model.config.vocab_size to {vocab_size} or more"
            )
        pass_batches_unchanged(self.trainer)

    def configure_model(self) -> None:
        """Creates the parameters, once."""
        if self.model is None:
            self.model = HybridLM(self.config, self.compute)

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self._built(), weight_decay=self.weight_decay, decay_embeddings=self.decay_embeddings)
        # One kernel for all parameters on a GPU; None is torch's default, which elsewhere is one parameter at a time.
        on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
        fused = True if on_gpu and not scales_gradients(self.trainer) else None
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=fused)
        optimizer.register_load_state_dict_pre_hook(_keep_implementation)
        decay_steps = self.decay_steps or self._total_steps()

        def factor(step: int) -> float:
            return learning_rate_factor(
                step,
                warmup_steps=self.warmup_steps,
                decay_steps=decay_steps,
                min_ratio=self.min_learning_rate_ratio,
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
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
        flops = real_flops(self.config, batch) if self._peak_flops else 0
        self._meter.add(batch, loss_sum.detach(), flops)
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
        return loss_sum * (copies / max(1, step_targets))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips, and keeps the gradient's norm before clipping for the log. Called once an optimiser step."""
        norm = clip_gradients(
            self, optimizer, gradient_clip_val, gradient_clip_algorithm, norm_wanted=logs_this_step(self.trainer)
        )
        self._optimizer_step = {"lr": optimizer.param_groups[0]["lr"]}
        if norm is not None:
            self._optimizer_step["grad_norm"] = norm

    # Logs of training

    def on_train_start(self) -> None:
        dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(str(self.trainer.precision).split("-")[0])
        self._peak_flops = peak_flops(self.device, dtype or torch.float32)
        self._meter = StepMeter()

    def on_train_batch_end(self, outputs: Any, batch: PackedBatch, batch_idx: int) -> None:
        if self._optimizer_step is None:
            return  # in the middle of an accumulation group
        logged = logs_this_step(self.trainer)
        if logged:
            self._log_step(self._optimizer_step)
        self._optimizer_step = None
        # One window of throughput a logged row: only there does the host wait for the device.
        self._meter.finish_step(restart_clock=logged)

    def _log_step(self, optimizer_step: dict[str, Tensor | float]) -> None:
        """Logs the optimiser step that has just been taken, as numbers on the host: Lightning would make a tensor on
        the device of a Python number, and wait for it."""
        totals = self._meter.totals(self.device)
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        assert isinstance(totals, Tensor)
        loss_sum, targets, tokens, padding, documents, window_tokens, window_flops = totals.tolist()
        seconds = self._meter.window_seconds()
        metrics = {
            **{name: float(value) for name, value in optimizer_step.items()},
            "padding_fraction": padding / (tokens + padding),
            "tokens_per_step": tokens,
            "documents_per_step": documents,
        }
        if self._peak_flops is not None:
            metrics["mfu"] = window_flops / (seconds * self._peak_flops * self.trainer.world_size)
        if self.device.type == "cuda":
            metrics["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        shown = {"train/loss": loss_sum / max(targets, 1.0), "tokens_per_second": window_tokens / seconds}
        for name, value in {**shown, **metrics}.items():
            number = torch.tensor(value, dtype=torch.float32)
            self.log(name, number, on_step=True, on_epoch=False, prog_bar=name in shown, batch_size=1)

    # Evaluation: every document's loss, exactly, over all batches and ranks

    def on_validation_start(self) -> None:
        self._meter.pause()

    def on_validation_end(self) -> None:
        self._meter.resume()

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
        stored = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}).get("config")
        if stored is None:
            raise UsageError("the checkpoint holds no model configuration; it was not written by LitHybridLM")
        check_same_config(stored, self.config)


def _check_ranges(*checks: tuple[str, object, bool, str]) -> None:
    for name, value, is_right, accepted in checks:
        if not is_right:
            raise UsageError(f"{name} must be {accepted}, got {value!r}")


def _keep_implementation(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's optimiser state, but computed as this run computes a step, not as the run that saved it did."""
    groups = [
        theirs | {name: ours[name] for name in ("fused", "foreach", "capturable") if name in ours}
        for theirs, ours in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return state | {"param_groups": groups}
