"""Train without the command line: data, model and Trainer are three plain objects.

python examples/train_from_python.py --steps 60
"""

import argparse

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from packmamba import ModelConfig
from packmamba.config import AttentionConfig
from packmamba.data import PackedDataModule
from packmamba.training.callbacks import LastCheckpoint, PackedProgressBar
from packmamba.training.lit import LitHybridLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps")
    parser.add_argument("--output", default="runs", help="folder for the log and the checkpoint")
    arguments = parser.parse_args()

    seed_everything(0)
    data = PackedDataModule(max_documents=600, capacity=1024)  # Python's own documentation, as bytes
    config = ModelConfig(
        layer_pattern="1-*-", d_model=64, vocab_size=data.vocab_size, attention=AttentionConfig(num_heads=4)
    )
    model = LitHybridLM(config, learning_rate=3e-3, warmup_steps=10)
    last = LastCheckpoint()
    logger = CSVLogger(arguments.output, name="train_from_python")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=arguments.steps,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        logger=logger,
        callbacks=[PackedProgressBar(), last],
    )
    trainer.fit(model, data)
    (metrics,) = trainer.validate(model, data, verbose=False)
    print(f"validation: {metrics['val/loss']:.3f} nats a byte")
    print(f"perplexity of the average document: {metrics['val/document_perplexity']:.1f}")
    print(f"log: {logger.log_dir}/metrics.csv")
    print(f"checkpoint: {last.best_model_path}; load it with LitHybridLM.load_from_checkpoint(...)")


if __name__ == "__main__":
    main()
