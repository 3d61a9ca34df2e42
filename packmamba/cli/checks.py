"""What `packmamba fit|validate|test|predict` refuses before data is read: options that do nothing, metrics and
attention backends that are not there, checkpoints that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from packmamba.attention import explain_backends
from packmamba.config import ModelConfig
from packmamba.data import PackedDataModule
from packmamba.data.options import Split
from packmamba.data.resume.evaluated import check_options
from packmamba.data.unused_options import refuse_unused
from packmamba.errors import CannotRunError, UsageError, did_you_mean
from packmamba.layer_config import LAYER_KINDS, AttentionConfig
from packmamba.training.evaluated_checkpoint import check_model, read_checkpoint
from packmamba.training.lightning_compat import dtype_of
from packmamba.training.lit import LitHybridLM

SPLIT_OF: dict[str, Split] = {"validate": "val", "test": "test", "predict": "predict"}

STEP_METRICS = (
    "train/loss",
    "tokens_per_second",
    "lr",
    "grad_norm",
    "padding_fraction",
    "tokens_per_step",
    "documents_per_step",
    "mfu",
    "gpu_memory_gib",
    "skipped_steps",
    "epoch",
    "step",
)
EVALUATION_METRICS = ("loss", "perplexity", "document_perplexity", "document_perplexity_median", "documents")
"""Names in the log, those of an evaluation behind `val/`, or `val/NAME/` where there are several sets."""


def check_run(
    command: str,
    arguments: Sequence[str],
    values: Any,
    model: LitHybridLM,
    datamodule: PackedDataModule,
    callbacks: Sequence[Any],
) -> None:
    """Raises UsageError for what cannot be used together, with model and data made but nothing read.

    arguments: the command line. values: its options as parsed. callbacks: those of the Trainer.
    """
    given = {argument.partition("=")[0] for argument in arguments}
    for said in refuse_unused(datamodule.options, given):
        rank_zero_info(said)
    _refuse_unused_layers(arguments, model)
    _check_balance(datamodule, model.config)
    if command == "fit":
        check_monitors(callbacks)
    path = values.get("ckpt_path")
    if not path:
        return
    checkpoint = read_checkpoint(path, weights_only=values.get("weights_only") is not False)
    check_model(checkpoint, model.config)
    if command in SPLIT_OF:
        state = checkpoint.get(PackedDataModule.__qualname__, {})
        check_options(state, datamodule, SPLIT_OF[command])


def check_monitors(callbacks: Sequence[Any]) -> None:
    """Raises UsageError for a callback that waits for a number which nothing logs; of one's own callbacks, which may
    log what they like, nothing is known, so that nothing is checked where there are some."""
    packages = ("packmamba.", "lightning.")
    if not all(type(callback).__module__.startswith(packages) for callback in callbacks):
        return
    known = [*STEP_METRICS, *(f"val/{name}" for name in EVALUATION_METRICS)]
    of_a_set = rf"val/[^/]+/({'|'.join(EVALUATION_METRICS)})"
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in known and not re.fullmatch(of_a_set, monitor):
            name = type(callback).__name__
            option = "best_checkpoint.monitor" if name == "BestCheckpoint" else f"monitor of {name}"
            raise UsageError(
                f"{option} must be a number that is logged, such as train/loss, "
                f"{', '.join(f'val/{name}' for name in EVALUATION_METRICS[:3])}; got {monitor!r}"
                f"{did_you_mean(monitor, known)}"
            )


def require_backend(model: LitHybridLM, device: torch.device, precision: str) -> None:
    """Raises CannotRunError for a named attention backend that cannot run on a device in the Trainer's precision."""
    backend = model.compute.attention_backend
    layers = [layer for layer in model.config.layers if isinstance(layer, AttentionConfig)]
    if backend == "auto" or not layers:
        return
    for layer in layers:
        assert layer.head_dim is not None
        reason = explain_backends(device, dtype_of(precision), layer.head_dim)[backend]
        if reason is not None:
            raise CannotRunError(f"model.compute.attention_backend {backend!r} cannot run: {reason}")


def _refuse_unused_layers(arguments: Sequence[str], model: LitHybridLM) -> None:
    """Options of a kind of layer that the model has none of, given on the command line; files may say more than one
    layer pattern of several needs."""
    used = {layer.kind for layer in model.config.layers}
    pattern = f"model.config.layer_pattern {model.config.layer_pattern!r} has no layer of that kind"
    for argument in arguments:
        option = argument.partition("=")[0].removeprefix("--")
        for kind in LAYER_KINDS:
            if option.startswith(f"model.config.{kind}.") and kind not in used:
                raise UsageError(f"{option} does nothing: {pattern}; leave it out, or add one")
        if option == "model.compute.attention_backend" and "attention" not in used:
            raise UsageError(f"{option} does nothing: {pattern}; leave it out, or add one")


def _check_balance(datamodule: PackedDataModule, config: ModelConfig) -> None:
    if datamodule.options.order.balance == "flops" and not any(isinstance(x, AttentionConfig) for x in config.layers):
        raise UsageError(
            "data.balance 'flops' counts the cost of attention, and the model has no attention layer; use tokens"
        )
