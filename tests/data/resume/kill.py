"""Training processes that are killed: what a child runs, and how its parent kills it and puts its log together.

Children are forked from a server that has imported everything, so that a life costs a fraction of a second.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from packmamba.config import ModelConfig
from packmamba.data import PackedDataModule
from packmamba.data.sources import Files
from packmamba.training.callbacks import LastCheckpoint
from packmamba.training.lit import LitHybridLM

MAX_STEPS = 50
ACCUMULATION = 2

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Variant:
    """What is trained: on loaded or streamed documents, by how many ranks with how many loader workers."""

    streaming: bool
    num_workers: int
    ranks: int

    def __str__(self) -> str:
        kind = "streamed" if self.streaming else "loaded"
        return f"{kind}-{self.num_workers}-workers-{self.ranks}-ranks"


class Logged(LitHybridLM):
    """Writes a line for each micro-batch before it is trained on: where in the history it is, and what it holds."""

    def __init__(self, log: Path) -> None:
        super().__init__(ModelConfig(layer_pattern="1-", d_model=8, vocab_size=258), warmup_steps=2)
        self.log_folder = log
        self.micro_step = 0

    def on_fit_start(self) -> None:
        path = self.log_folder / f"rank{self.global_rank}.jsonl"
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        place = self.global_rank, self.global_step, self.micro_step
        contents = batch.doc_ids.tolist(), int((batch.input_ids * torch.arange(1, len(batch.input_ids) + 1)).sum())
        os.write(self.file, (json.dumps([*place, *contents]) + "\n").encode())
        self.micro_step += 1
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.micro_step = 0

    def on_fit_end(self) -> None:
        if self.global_rank == 0:
            torch.save(self.state_dict(), self.log_folder / "weights.pt")


def live(folder: Path, files: list[str], variant: Variant) -> None:
    """One process, from the last checkpoint to the last step. Its ranks and workers belong to its process group."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # the server's children would start workers by another server
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    pl.seed_everything(0)
    data = PackedDataModule(
        source=Files(paths=files, streaming=variant.streaming),
        val_fraction=0,
        capacity=120,
        section_documents=16,
        num_workers=variant.num_workers,
        cache_dir=str(folder.parent / "cache"),
    )
    checkpoint = LastCheckpoint(every_n_train_steps=2)
    checkpoint.dirpath = str(folder)
    distributed: dict[str, Any] = {"devices": variant.ranks, "strategy": "ddp_fork" if variant.ranks > 1 else "auto"}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=MAX_STEPS,
        max_epochs=-1,
        accumulate_grad_batches=ACCUMULATION,
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **distributed,
    )
    last = folder / "last.ckpt"
    trainer.fit(Logged(folder), datamodule=data, ckpt_path=str(last) if last.exists() else None)


def start(folder: Path, files: list[str], variant: Variant) -> Any:
    process = SERVER.Process(target=live, args=(folder, files, variant))
    process.start()
    return process


def kill_soon(process: Any, folder: Path, rng: random.Random) -> bool:
    """Kills a process, its ranks and workers at a random moment after it has begun to train. False: it was done."""
    seen = lines(folder)
    batches = rng.randint(1, 9)
    while process.is_alive() and lines(folder) < seen + batches:
        time.sleep(0.001)
    time.sleep(rng.random() * 0.02)
    done = not process.is_alive()
    if not done:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return not done


def lines(folder: Path) -> int:
    path = folder / "rank0.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def history(folder: Path, ranks: int) -> dict[tuple[int, int, int], list[Any]]:
    """What was trained on at each (rank, step, micro-step). Where a later life has redone a step, its word counts.

    Raises AssertionError for a step that a life has not begun at its beginning.
    """
    found = {}
    for rank in range(ranks):
        steps: dict[int, list[Any]] = {}
        for line in (folder / f"rank{rank}.jsonl").read_text().splitlines():
            _, step, micro_step, *contents = json.loads(line)
            if micro_step == 0:
                steps[step] = []
            assert len(steps[step]) == micro_step, "an optimiser step was resumed in its middle"
            steps[step].append(contents)
        found |= {(rank, step, number): x for step, batches in steps.items() for number, x in enumerate(batches)}
    return found
