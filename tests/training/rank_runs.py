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
from packmamba.errors import NonFiniteError
from packmamba.training.lit import LitHybridLM

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])
CONFIG = ModelConfig(layer_pattern="1-*", d_model=16, vocab_size=258, attention=AttentionConfig(num_heads=2))


class Kept(LitHybridLM):
    """Keeps what the ranks share, and what this one was given."""

    def __init__(self, folder: Path, on_nonfinite: str = "stop") -> None:
        super().__init__(CONFIG, learning_rate=1e-2, warmup_steps=2, on_nonfinite=on_nonfinite)  # type: ignore[arg-type]
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


class Poisoned(Kept):
    """The last rank's loss of step 3 is NaN."""

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        assert self.model is not None
        if self.global_rank == self.trainer.world_size - 1 and self.trainer.global_step == 3:
            loss = type(self.model).loss
            self.model.loss = lambda *args, **kwargs: loss(self.model, *args, **kwargs) * float("nan")  # type: ignore[method-assign]
        elif "loss" in vars(self.model):
            del self.model.loss
        return super().training_step(batch, batch_idx)

    def configure_gradient_clipping(self, *args, **kwargs) -> None:
        try:
            super().configure_gradient_clipping(*args, **kwargs)
        except NonFiniteError as error:
            (self.folder / f"rank{self.global_rank}.txt").write_text(str(error))
            torch.distributed.barrier()  # the first process that ends has the others killed
            raise


def train(folder: Path, files: list[str], streaming: bool, ranks: int, accumulation: int) -> list[dict]:
    """Two epochs; what each rank has kept."""
    folder.mkdir()
    process = SERVER.Process(target=_train, args=(folder, files, streaming, ranks, accumulation))
    process.start()
    process.join(120)
    assert process.exitcode == 0, "ranks wait for each other" if process.exitcode is None else "a rank failed"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def train_poisoned(folder: Path, files: list[str], on_nonfinite: str) -> list[str] | list[dict]:
    """Two ranks, a NaN on the second: what each has failed with, or has kept."""
    folder.mkdir()
    process = SERVER.Process(target=_train, args=(folder, files, False, 2, 1, on_nonfinite))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "ranks wait for each other"
    if process.exitcode:
        return [(folder / f"rank{rank}.txt").read_text() for rank in range(2)]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def _train(
    folder: Path, files: list[str], streaming: bool, ranks: int, accumulation: int, on_nonfinite: str | None = None
) -> None:
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
    trainer.fit(Kept(folder) if on_nonfinite is None else Poisoned(folder, on_nonfinite), datamodule=data)
