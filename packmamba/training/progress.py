"""How training is going: a bar in a terminal, or a line of text now and then where there is none.

`packmamba fit` takes the bar where stderr is a terminal that can redraw a line, and text elsewhere, as in a file or in
the output of a batch system; `--progress bar`, `text` or `none` insist on one.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.console import Console
from rich.progress import BarColumn

from packmamba.training.lightning_compat import StepProgressBar, logs_this_step

ProgressKind = Literal["auto", "bar", "text", "none"]

SHOWN = {"train/loss": "loss", "val/loss": "val", "test/loss": "test", "tokens_per_second": "tok/s"}
"""Labels of the progress bar, by the names of the numbers in the log."""


def make_progress(kind: ProgressKind) -> ProgressBar | None:
    """The callback of this kind. `auto`: a bar in a terminal, text elsewhere. `none`: None."""
    if kind == "auto":
        console = Console(stderr=True)
        kind = "bar" if console.is_terminal and not console.is_dumb_terminal else "text"
    return {"bar": PackedProgressBar, "text": TextProgress, "none": lambda: None}[kind]()


class PackedProgressBar(StepProgressBar):
    """Lightning's rich progress bar on stderr, with the loss and real tokens/s as they were last logged."""

    def __init__(self, refresh_rate: int = 4, leave: bool = False) -> None:
        """refresh_rate: redraws a second. leave: whether a finished bar stays on the screen."""
        super().__init__(refresh_rate=refresh_rate, leave=leave, console_kwargs={"stderr": True})
        self._shown: dict[str, int | str | float | dict[str, float]] = {}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        # All has to fit into 80 columns; tokens a second say more than batches a second.
        columns = [
            column for column in super().configure_columns(trainer) if not isinstance(column, ProcessingSpeedColumn)
        ]
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 8
        return columns

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        logged = trainer.progress_bar_metrics
        self._shown = {
            label: f"{logged[name] / 1000:.1f}k" if label == "tok/s" else f"{logged[name]:.3f}"
            for name, label in SHOWN.items()
            if name in logged
        }
        return self._shown


class TextProgress(ProgressBar):
    """Lines of text on stderr: a row of the log now and then, and the result of every validation.

    step 120/5000  loss 3.412  lr 2.9e-04  42,100 tokens/s  eta 1:23:45
    step 125/5000  validation  loss 3.377  perplexity 29.28  by document 31.02
    """

    def __init__(self, every_seconds: float = 5.0) -> None:
        """every_seconds: The least time between two lines, but for the first, the last and those of validation. A line
        is a row of the log, so that trainer.log_every_n_steps matters too."""
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._row: int | None = None
        """The optimiser step of a row of the log that may be shown."""
        self._latest = -math.inf
        """When the last line was written."""
        self._clock: tuple[float, int] | None = None
        """When the first of this run's optimiser steps was complete, and its number."""
        self._last_step: int | None = None

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False  # on every rank but the first

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        if self._enabled:
            print(*args, sep=sep, file=sys.stderr, flush=True)

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._row, self._clock, self._latest = None, None, -math.inf
        self._last_step = _last_step(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._show_row(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._clock is None and step:
            self._clock = time.monotonic(), step
        if logs_this_step(trainer):
            self._row = step  # the module logs it after this, so it is shown when the next hook is called

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show_row(trainer, at_once=trainer.global_step == self._last_step)

    def _show_row(self, trainer: Trainer, *, at_once: bool = False) -> None:
        step, self._row = self._row, None
        if step is None or not (at_once or time.monotonic() - self._latest >= self.every_seconds):
            return
        logged, parts = trainer.logged_metrics, [self._place(step)]
        if "train/loss" in logged:
            parts.append(f"loss {float(logged['train/loss']):.3f}")
        if "lr" in logged:
            parts.append(f"lr {float(logged['lr']):.1e}")
        if "tokens_per_second" in logged:
            parts.append(f"{float(logged['tokens_per_second']):,.0f} tokens/s")
        seconds = self._seconds_left(step)
        if seconds is not None:
            parts.append(f"eta {in_hours(seconds)}")
        self._latest = time.monotonic()
        self.print("  ".join(parts))

    def _place(self, step: int) -> str:
        return f"step {step}" if self._last_step is None else f"step {step}/{self._last_step}"

    def _seconds_left(self, step: int) -> float | None:
        """Until the last step, as long as a step has taken so far, validations included; None where that is unknown."""
        if self._last_step is None or self._clock is None or step in (self._clock[1], self._last_step):
            return None
        began, first = self._clock
        return (time.monotonic() - began) / (step - first) * (self._last_step - step)

    # Evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.training or trainer.validating:
            self._show_row(trainer, at_once=trainer.global_step == self._last_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return  # validate prints a table
        logged = trainer.callback_metrics
        for name in (name for name in logged if name.startswith("val") and name.endswith("/loss")):
            prefix = name.removesuffix("loss")
            words = ["validation", *prefix.strip("/").split("/")[1:]]
            parts = [self._place(trainer.global_step), " ".join(words), f"loss {float(logged[name]):.3f}"]
            for label, key in (("perplexity", "perplexity"), ("by document", "document_perplexity")):
                if prefix + key in logged:
                    parts.append(f"{label} {float(logged[prefix + key]):.2f}")
            self.print("  ".join(parts))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == "validate":
            self._show_batch(trainer, "validating", trainer.num_val_batches, args[3])

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._show_batch(trainer, "testing", trainer.num_test_batches, args[3])

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._show_batch(trainer, "predicting", trainer.num_predict_batches, args[3])

    def _show_batch(self, trainer: Trainer, doing: str, totals: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if batch_idx == 0 and self._latest == -math.inf:
            self._latest = now  # a short one needs no line
        if now - self._latest >= self.every_seconds:
            self._latest = now
            totals = totals if isinstance(totals, list) else [totals]
            self.print(f"{doing}  batch {batch_idx + 1}" + (f"/{totals[0]}" if len(totals) == 1 else ""))


def _last_step(trainer: Trainer) -> int | None:
    """The optimiser step at which training ends; None where that is unknown."""
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and math.isfinite(batches):
        ends.append(math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    return min(ends, default=None)


def in_hours(seconds: float) -> str:
    """1:23:45.

    >>> in_hours(5025.4)
    '1:23:45'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
