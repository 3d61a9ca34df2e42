"""`packmamba fit --check`: what a run would train on and how, in 80 columns of plain text, without training."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from packmamba.data import PackedDataModule
from packmamba.data.preview import Epoch, PieceOfPack, Preview, Run, look_at
from packmamba.data.resume.progress import accumulate
from packmamba.training.lightning_compat import data_ranks
from packmamba.training.lit import LitHybridLM
from packmamba.training.model_summary import describe_model, describe_schedule
from packmamba.training.vocabulary import require_vocabulary

WIDTH = 80
MOST_PIECES = 6
"""Documents of the pack that are shown."""
MOST_RUNS = 8
"""Runs of tokens of a document that are shown."""
MOST_LINES = 5
"""Lines of a run that are shown: the first ones, and the last."""

_LOSS, _NO_LOSS = "loss |", "     |"


@rank_zero_only
def check(trainer: Trainer, lit: LitHybridLM, data: PackedDataModule) -> None:
    """Prints what `trainer.fit(lit, data)` would do. Raises UsageError for documents that cannot be trained on."""
    require_vocabulary(data.vocab_size, lit.config)
    world_size, _ = data_ranks(trainer)
    accumulate(trainer, data.options, world_size)
    preview = look_at(data, world_size=world_size, accumulation=trainer.accumulate_grad_batches)
    sections = {
        "One pack": pack_lines(preview, data.capacity),
        "Plan": plan_lines(preview, trainer, data, world_size),
        "Model": describe_model(lit, capacity=data.capacity, precision=str(trainer.precision)),
        "Training": training_lines(trainer, lit, preview.epoch),
    }
    for title, lines in sections.items():
        print(f"-- {title} ".ljust(WIDTH, "-"))
        for line in lines:
            print(line.rstrip())
        print()
    print("Checked; nothing was trained or saved. Without --check, training begins.")


# The pack


def pack_lines(preview: Preview, capacity: int) -> Iterator[str]:
    """A pack in words: each document, and which of its tokens have a loss."""
    tokens = sum(piece.tokens for piece in preview.pieces)
    targets = sum(piece.targets for piece in preview.pieces)
    number = len(preview.pieces)
    filler = f"; {preview.filler:,} tokens of filler" if preview.filler else ""
    yield from _wrapped(
        f"{number} {'document' if number == 1 else 'documents'} in {tokens:,} of {capacity:,} tokens, {targets:,} of "
        f"them with a loss{filler}"
    )
    yield from _wrapped(
        f'Text behind "{_LOSS}" is predicted, token by token, from what precedes it in its document; the first token '
        "never is, for nothing does."
    )
    for number, piece in enumerate(preview.pieces[:MOST_PIECES], start=1):
        yield ""
        yield f"document {number} (row {piece.row:,}): {piece.tokens:,} tokens, {piece.targets:,} with a loss"
        yield from _piece_lines(piece)
    if len(preview.pieces) > MOST_PIECES:
        yield ""
        yield f"... and {len(preview.pieces) - MOST_PIECES:,} more"


def _piece_lines(piece: PieceOfPack) -> Iterator[str]:
    runs = piece.runs
    if len(runs) > MOST_RUNS:
        half = MOST_RUNS // 2
        skipped = sum(run.tokens for run in runs[half:-half])
        for run in runs[:half]:
            yield from _run_lines(run)
        yield f"      ... {skipped:,} tokens ..."
        runs = runs[-half:]
    for run in runs:
        yield from _run_lines(run)


def _run_lines(run: Run) -> Iterator[str]:
    mark = _LOSS if run.is_predicted else _NO_LOSS
    width = WIDTH - len(mark) - 1
    lines = []
    for line in _visible(run.text.removesuffix("\n")).split("\n"):
        lines += [line[i : i + width] for i in range(0, len(line), width)] or [""]
    if len(lines) > MOST_LINES:
        hidden = len(lines) - MOST_LINES
        lines = [*lines[: MOST_LINES - 1], f"... {hidden:,} lines ...", lines[-1]]
    for line in lines:
        yield f"{mark} {line}"


def _visible(text: str) -> str:
    """Without characters that move the cursor or ring the bell; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "    " if c == "\t" else f"\\x{ord(c):02x}" for c in text)


# The plan


def plan_lines(preview: Preview, trainer: Trainer, data: PackedDataModule, world_size: int) -> Iterator[str]:
    """Documents, tokens, packs and optimiser steps of an epoch, and how far training goes."""
    epoch, about = preview.epoch, "" if preview.epoch.is_exact else "about "
    if epoch.is_exact:
        yield from _wrapped(f"{preview.source}: exact, for the documents are tokenised already")
    else:
        which = "spread over all" if epoch.documents is not None else "the first of the stream"
        yield from _wrapped(
            f"{preview.source}: estimated from {preview.sampled} documents, {which}; tokens, packs and steps give or "
            f"take {epoch.uncertainty:.0%}"
        )
    rows: list[tuple[str, str]] = []
    if epoch.documents is None:
        rows.append(("documents", "unknown, for they are streamed"))
    else:
        held_out = "" if preview.val_documents is None else f", and {preview.val_documents:,} to validate on"
        rows.append(("documents", f"{about}{epoch.documents:,} to train on{held_out}"))
        rows.append(("tokens", f"{about}{epoch.tokens:,}, {epoch.targets:.1%} of them with a loss"))
    full = f"{epoch.efficiency:.1%} full, {epoch.padding:.1%} padding, {epoch.split:.1%} of the documents cut"
    number = "" if epoch.packs is None else f"{about}{epoch.packs:,} "
    rows.append(("packs", f"{number}of {data.capacity:,} tokens, {data.strategy}: {full}"))
    micro = f"{trainer.accumulate_grad_batches} x {world_size}"
    of = "accumulated batches x ranks"
    rows.append(("a step", f"{about}{epoch.tokens_per_step:,.0f} tokens: {micro} packs ({of})"))
    if epoch.steps is not None:
        rows.append(("an epoch", f"{about}{epoch.steps:,} optimiser steps"))
    rows.append(("training", _how_far(epoch, trainer, about)))
    yield from _table(rows)


def _last_step(trainer: Trainer, epoch: Epoch) -> int | None:
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and epoch.steps is not None:
        ends.append(trainer.max_epochs * epoch.steps)
    return min(ends, default=None)


def _how_far(epoch: Epoch, trainer: Trainer, about: str) -> str:
    last = _last_step(trainer, epoch)
    if last is None:
        return "until it is stopped" if trainer.max_epochs in (None, -1) else f"{trainer.max_epochs} epochs"
    tokens = f"about {last * epoch.tokens_per_step:,.0f} tokens"
    if epoch.steps is None:
        return f"{last:,} steps, {tokens}"
    epochs = last / epoch.steps
    return f"{last:,} steps, {about}{epochs:.{0 if epochs >= 100 else 2}f} epochs, {tokens}"


# Training


def training_lines(trainer: Trainer, lit: LitHybridLM, epoch: Epoch) -> Iterator[str]:
    """Optimiser, device, and where things go."""
    rows = [("optimiser", describe_schedule(lit, _last_step(trainer, epoch)))]
    device = f"{trainer.num_devices} x {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}"
    nodes = f" on each of {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    rows.append(("device", f"{device}{nodes}, precision {trainer.precision}"))
    if trainer.logger is None:
        rows.append(("log", "none"))
    else:
        rows.append(("log", f"{trainer.log_dir} ({', '.join(type(logger).__name__ for logger in trainer.loggers)})"))
    files = [_checkpoint_file(callback) for callback in trainer.checkpoint_callbacks]
    folder = f"{trainer.log_dir}/checkpoints: " if trainer.logger is not None else ""
    rows.append(("checkpoints", folder + ", ".join(files) if files else "none"))
    yield from _table(rows)


def _checkpoint_file(callback: Any) -> str:
    return f"{getattr(callback, 'filename', None) or type(callback).__name__}.ckpt"


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, value in rows:
        first, *others = textwrap.wrap(value, WIDTH - 14, break_on_hyphens=False) or [""]
        yield f"{name:<14}{first}"
        yield from (f"{'':<14}{line}" for line in others)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
