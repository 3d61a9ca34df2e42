"""A training run by one or more ranks that keeps every optimiser step's loss and gradients; a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from packmamba.config import AttentionConfig, ModelConfig
from packmamba.data import PackedDataModule
from packmamba.data.sources import Files
from packmamba.training.lit import LitHybridLM

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])
CONFIG = ModelConfig(layer_pattern="1-*", d_model=16, vocab_size=258, attention=AttentionConfig(num_heads=2))


class Kept(LitHybridLM):
    """Keeps what the ranks share, and what this one was given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(CONFIG, learning_rate=1e-2, warmup_steps=2)
        self.folder = folder
        self.gradients: list[torch.Tensor] = []
        self.losses: list[float] = []
        self.documents: list[list[int]] = []

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        self.documents.append(batch.doc_ids.tolist())
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(gradients).clone())

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        stepped = self._optimizer_step is not None
        super().on_train_batch_end(outputs, batch, batch_idx)
        if stepped:
            self.losses.append(float(self.trainer.callback_metrics["train/loss"]))

    def on_fit_end(self) -> None:
        kept = {"gradients": torch.stack(self.gradients), "losses": self.losses, "documents": self.documents}
        torch.save(kept | {"weights": self.state_dict()}, self.folder / f"rank{self.global_rank}.pt")


def train(folder: Path, files: list[str], streaming: bool, ranks: int, accumulation: int) -> list[dict]:
    """Two epochs; what each rank has kept."""
    folder.mkdir()
    process = SERVER.Process(target=_train, args=(folder, files, streaming, ranks, accumulation))
    process.start()
    process.join(120)
    assert process.exitcode == 0, "ranks wait for each other" if process.exitcode is None else "a rank failed"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def _train(folder: Path, files: list[str], streaming: bool, ranks: int, accumulation: int) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    pl.seed_everything(0)
    source = Files(paths=files, streaming=streaming)
    data = PackedDataModule(source=source, val_fraction=0, capacity=64, cache_dir=str(folder / "cache"))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        accumulate_grad_batches=accumulation,
        max_epochs=2,
        max_steps=100,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Kept(folder), datamodule=data)
