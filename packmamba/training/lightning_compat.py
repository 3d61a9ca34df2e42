"""Everything that packmamba reads or sets of Lightning's private or undocumented state. Checked with Lightning 2.6.6.

It imports nothing of packmamba, so that `packmamba.data`, which may not import the rest of `packmamba.training`, can
use it. A new version of Lightning is admitted in pyproject.toml once the tests of data/resume and training pass.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import warnings
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

# Counters: where a run stands. Lightning saves and restores them with its loops.


def batches_trained(trainer: Any) -> int:
    """Batches trained on since the run began, resumed ones included; 0 without a Trainer.

    `processed` counts the batch at hand in `on_train_batch_end`, where checkpoints are saved; `completed` does not.
    """
    return 0 if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.total.processed


def batches_of_epoch(trainer: Any) -> int:
    """The same of the epoch at hand."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed


def at_last_batch(trainer: Any) -> bool:
    """Whether the latest batch was the last of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def is_fitting(trainer: Any) -> bool:
    """Whether `Trainer.fit` is running."""
    state = None if trainer is None else trainer.state
    return state is not None and state.fn == TrainerFn.FITTING and state.status == TrainerStatus.RUNNING


def current_stage(trainer: Any) -> str | None:
    """`fit`, `validate`, `test` or `predict`; None without a Trainer that runs one."""
    return None if trainer is None or trainer.state.fn is None else trainer.state.fn.value


def set_batches(trainer: Any, current: int, total: int) -> None:
    """As if a checkpoint had been saved after so many batches of this epoch (`current`) and of the run (`total`).

    Lightning restores its counters before it asks for the first batch, and reads them after; in between, they can be
    set.
    """
    loop = trainer.fit_loop.epoch_loop
    for counter, value in ((loop.batch_progress.current, current), (loop.batch_progress.total, total)):
        counter.ready = counter.started = counter.processed = counter.completed = value
    loop.batch_progress.is_last_batch = False
    loop._batches_that_stepped = trainer.global_step


def begin_next_epoch(trainer: Any, total: int) -> None:
    """As if the epoch of the checkpoint had been completed in this process, after so many batches of the run.

    Lightning tells how far the end of an epoch had been processed by comparing the counters with the number of batches,
    which a stream does not have, and another number of ranks has changed.
    """
    fit_loop = trainer.fit_loop
    set_batches(trainer, 0, total)
    for counter in (fit_loop.epoch_progress.current, fit_loop.epoch_progress.total):
        counter.started = counter.processed = counter.completed = counter.ready
    fit_loop._restarting = False  # the property would set it again where `max_steps` is given
    fit_loop.epoch_loop.restarting = False


# Validation when training ends.


def training_ends(trainer: Any) -> bool:
    """Whether the epoch that ends, in `on_train_epoch_end`, is the last."""
    fit_loop, max_epochs = trainer.fit_loop, trainer.max_epochs
    by_epochs = max_epochs not in (None, -1) and fit_loop.epoch_progress.current.processed >= max_epochs
    by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    by_request = trainer.should_stop and fit_loop._can_stop_early
    return not trainer.received_sigterm and bool(by_epochs or by_steps or by_request)


def count_logged_step(trainer: Any, steps: int) -> None:
    """Moves the number of the step under which Lightning logs."""
    trainer.fit_loop.epoch_loop._batches_that_stepped += steps


def validate_now(trainer: Any) -> None:
    """Runs validation, in `on_train_epoch_end`, as Lightning does after a batch."""
    first_loop_iter = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    trainer.lightning_module.on_validation_model_zero_grad()
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first_loop_iter


def rank_of_process() -> int:
    """This process's rank by its environment, also before there is a Trainer."""
    return rank_zero_only.rank  # pyright: ignore[reportFunctionMemberAccess]


# The Trainer's connectors: attributes that it has, but does not document or annotate.


def data_ranks(trainer: Any) -> tuple[int, int]:
    """How many ranks take different data, and which of them this is."""
    kwargs = None if trainer is None else trainer.distributed_sampler_kwargs
    return (1, 0) if kwargs is None else (kwargs["num_replicas"], kwargs["rank"])


def datamodule_of(trainer: Any) -> Any:
    """The data module of the run, or None."""
    return trainer.datamodule


def logs_this_step(trainer: Any) -> bool:
    """Whether the Trainer writes a row of the log for the optimiser step at hand. Lightning and its callbacks keep
    `should_stop`, which asks for a last row, the same on all ranks."""
    return trainer._logger_connector.should_update_logs or bool(trainer.fast_dev_run)


def last_step(trainer: Any) -> int | None:
    """The optimiser step at which training ends, or None where `max_epochs` ends it and an epoch's length is unknown.

    Not `trainer.estimated_stepping_batches`: with max_epochs it opens the loaders before a resumed run has restored
    their state, which is then lost. Making a loader without iterating over it leaves all as it is.
    """
    by_steps = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and trainer.datamodule is not None:
        batches, limit = sized_len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
        if batches is not None:  # a stream does not know
            batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
            by_steps.append(math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    return min(by_steps, default=None)


# Precision and gradients.


def dtype_of(precision: Any) -> torch.dtype:
    """The dtype that a Trainer's precision has most of a forward computed in; fp32 stands for fp64 too."""
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(str(precision).split("-")[0], torch.float32)


def pass_batches_unchanged(trainer: Any) -> None:
    """Keeps half- and double-precision plugins from rebuilding a batch to cast its floats: they fail on frozen
    dataclasses. A PackedBatch has no floats."""
    trainer.precision_plugin.convert_input = lambda data: data


def scales_gradients(trainer: Any) -> bool:
    """Whether gradients are scaled (`16-mixed`). A fused optimiser would undo that inside its step, after clipping."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def gradient_scale(trainer: Any) -> float | None:
    """What losses are multiplied with before their backward (`16-mixed`), or None. Waits for the device."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler.get_scale()


def more_batches_follow(trainer: Any) -> bool:
    """Whether the optimiser step takes another micro-batch after the one at hand."""
    return trainer.accumulate_grad_batches > 1 and trainer.fit_loop._should_accumulate()


def clip_gradients(
    module: LightningModule,
    optimizer: torch.optim.Optimizer,
    clip_val: float | None,
    algorithm: str | None,
    *,
    norm_wanted: bool,
) -> Tensor | None:
    """Clips as `LightningModule.clip_gradients` does, and returns the gradient's norm before clipping: always where it
    is clipped by norm, which computes it anyway, else where it is wanted.

    Lightning's own function throws the norm away, and refuses fused optimisers with mixed precision though only
    scaled gradients need that. Strategies and precisions with clipping of their own (FSDP, DeepSpeed) keep it.
    """
    plugin = module.trainer.precision_plugin
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    usual = type(plugin).clip_grad_by_norm is Precision.clip_grad_by_norm and (
        type(plugin).clip_gradients in (Precision.clip_gradients, MixedPrecision.clip_gradients)
    )
    limit = max(0.0, clip_val or 0.0) if usual else 0.0
    if limit and (algorithm or "norm") == "norm":
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    norm = None
    if norm_wanted:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit:
        plugin.clip_grad_by_value(optimizer, limit)
    elif not usual:
        module.clip_gradients(optimizer, clip_val, algorithm)
    return norm


# Checkpoints and the progress bar.


def save_checkpoint_now(callback: ModelCheckpoint, trainer: Any) -> None:
    """Has a checkpoint callback save the present state, unless it has done so at this step or must not save."""
    if not callback._should_skip_saving_checkpoint(trainer):
        callback._save_topk_checkpoint(trainer, callback._monitor_candidates(trainer))


def loops_of(trainer: Any) -> dict[str, Any]:
    """Lightning's counters of a fit, as a checkpoint that is saved now would hold them."""
    return trainer.fit_loop.state_dict()


def loops_before_validation(trainer: Any) -> dict[str, Any]:
    """The same during a validation, which a resumed run begins again: Lightning would go on in its middle."""
    loops = trainer.fit_loop.state_dict()
    counters = loops["epoch_loop.val_loop.batch_progress"]
    for name in ("total", "current"):
        counters[name] = dict.fromkeys(counters[name], 0)
    # It tells that validation was interrupted by a batch that has been started and not processed.
    counters["total"] |= {"ready": 1, "started": 1}
    counters["is_last_batch"] = False
    return loops


def can_save_alone(trainer: Any) -> bool:
    """Whether this rank can save without the others: rank 0 of those that hold all weights and all optimiser states."""
    whole = isinstance(trainer.strategy, DDPStrategy) and not any(
        hasattr(optimizer, "consolidate_state_dict") for optimizer in trainer.optimizers
    )
    return whole and trainer.is_global_zero


def save_checkpoint_with(trainer: Any, path: str, loops: dict[str, Any], *, swapped: bool, together: bool) -> None:
    """Saves the present weights with the counters `loops`, those of an earlier moment since the last optimiser step.

    swapped: whether a validation is going on, for which Lightning's callbacks of averaged weights put these into the
    model. together: whether every rank calls this; else this one does, and does not wait for the others.
    """
    for callback in trainer.callbacks if swapped else ():
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            callback._swap_models(trainer.lightning_module)
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    checkpoint["epoch"] = loops["epoch_progress"]["current"]["processed"]
    checkpoint["loops"]["fit_loop"] = loops
    trainer.strategy.save_checkpoint(checkpoint, path)
    if together:
        trainer.strategy.barrier("save_checkpoint_with")


def agreed_maximum(trainer: Any, number: int) -> int:
    """The largest number that a rank has named; every rank has to call it. On one rank, it costs nothing; on several,
    one more exchange beside the one that Lightning makes before each batch."""
    if trainer.world_size == 1:
        return number
    numbers = torch.tensor(number, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(numbers, reduce_op="max"))


def restores_handlers(trainer: Any, handlers: dict[int, Any]) -> None:
    """Has the Trainer leave these signal handlers when it ends, not those that it found when it began to run."""
    trainer._signal_connector._original_handlers.update(handlers)


def end_other_ranks(trainer: Any) -> None:
    """Ends the processes that this one has started as ranks: its equals, which may wait for it for ever, or those that
    train while it waits (`ddp_spawn`), which save before they end."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGKILL)
    elif isinstance(launcher, _MultiProcessingLauncher):
        launcher.kill(signal.SIGTERM)


def checkpoint_saved_last(trainer: Any) -> str | None:
    """The checkpoint that this run saved last, or else the one that it began with; None if there is neither."""
    saved = [
        path
        for callback in trainer.checkpoint_callbacks
        for path in (callback._last_checkpoint_saved, callback.last_model_path, callback.best_model_path)
        if path and os.path.exists(path)
    ]
    return max(saved, key=os.path.getmtime, default=trainer.ckpt_path)


class StepProgressBar(RichProgressBar):
    """Lightning's rich progress bar, ending where `max_steps` ends and naming the epoch alone."""

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch, or fewer where `max_steps` ends training before the epoch does."""
        total = super().total_train_batches
        if self.trainer.max_steps < 0:
            return total
        loop = self.trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.ready if loop.restarting else 0
        steps_left = self.trainer.max_steps - self.trainer.global_step
        return min(total, done + steps_left * self.trainer.accumulate_grad_batches)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}"


# Messages that do not concern packmamba's users, by their text.


def expect_hooks_of_module() -> None:
    """Hides the warnings that the module's batch hooks are used though there is a data module, and that averaged
    weights are not sharded: both are wanted."""
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides")
    for hook in ("on_before_batch_transfer", "transfer_batch_to_device"):
        warnings.filterwarnings("ignore", message=f"You have overridden `{hook}` in `LightningModule`")


_UNWANTED = (
    "litlogger",
    "TPU available: False",
    "HPU available: False",
    "Loaded model weights from the checkpoint",
    "Detected KeyboardInterrupt",
)


def _concerns_users(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _UNWANTED)


def quiet_commands(*, saves: bool) -> None:
    """Hides messages that Lightning prints at every start of a command. saves: whether it writes checkpoints."""
    # An advertisement for another logger; hardware that is not there; the second line on the same checkpoint; what
    # LastCheckpoint says better.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_concerns_users)
    warnings.filterwarnings("ignore", message=".*LeafSpec", module="lightning")  # its own use of torch
    if not saves:
        warnings.filterwarnings("ignore", message="The dirpath has changed")
