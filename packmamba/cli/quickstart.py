"""Train a small hybrid on packed documents, validate it, and compare packed training with padded training and with one
document at a time, on the same documents. Leaves a checkpoint, a log, and two pictures if matplotlib is there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from packmamba.cli.fit import PackmambaCLI, run
from packmamba.cli.parser_errors import PlainParser, refuse_misspelt
from packmamba.compare.modes import cut
from packmamba.compare.plots import plot_throughput
from packmamba.compare.report import positive
from packmamba.compare.throughput import MODES, Comparison, ModeResult
from packmamba.data import PackedDataModule
from packmamba.environment import describe_environment
from packmamba.errors import MissingPackageError, UsageError
from packmamba.plots import import_pyplot, plot_loss
from packmamba.training.callbacks import LastCheckpoint
from packmamba.training.lit import LitHybridLM

console = Console()


def main(argv: Sequence[str]) -> int:
    """argv: the command's options. Raises UsageError as `packmamba fit` does, and for another logger than CSV files."""
    arguments = _parse(argv)

    def before_training(cli: PackmambaCLI) -> None:
        _require_csv_log(cli)
        console.rule(f"1  Train: {arguments.config}")

    cli = run(["fit", "--config", arguments.config, *arguments.overrides], before_training)
    assert isinstance(cli.trainer.logger, CSVLogger)
    folder = Path(cli.trainer.logger.log_dir)
    console.rule("2  Validate")
    _validate(cli)
    console.rule("3  Compare packed, padded and one document at a time")
    results = _compare(cli, arguments.documents, arguments.repeats)
    _print_results(results)
    (folder / "throughput.json").write_text(
        json.dumps(
            {"environment": describe_environment("cpu"), "results": [result.to_dict() for result in results]}, indent=2
        )
    )
    console.rule("Done")
    last = next(callback for callback in cli.trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint))
    written = {"checkpoint": Path(last.best_model_path), "log": folder / "metrics.csv"}
    try:
        written |= _draw(results, folder, Path(arguments.config).stem)
    except MissingPackageError as error:
        written["comparison"] = folder / "throughput.json"
        print(error)
    for label, path in written.items():
        print(f"{label:<11} {_relative(path)}")
    return 0


def _draw(results: Sequence[ModeResult], folder: Path, name: str) -> dict[str, Path]:
    import_pyplot()
    loss, comparison = folder / "loss.png", folder / "throughput.png"
    plot_loss(folder / "metrics.csv", loss, title=f"Training loss and validation loss, configuration {name}")
    plot_throughput(results, comparison, title="Training on the same documents, three ways")
    print("Pictures are there as SVG too.")
    return {"loss curve": loss, "comparison": comparison}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = PlainParser(
        prog="packmamba quickstart",
        description=__doc__,
        epilog="Further options go to `packmamba fit`, e.g. --trainer.max_steps 50.",
    )
    parser.add_argument(
        "--config", default="quickstart", help="a file, or the name of a shipped configuration (default: %(default)s)"
    )
    parser.add_argument(
        "--documents", type=positive, default=64, help="documents to compare the three ways on (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, help="timed passes over them, after a warm-up (default: %(default)s)"
    )
    arguments, arguments.overrides = parser.parse_known_args(argv)
    refuse_misspelt(arguments.overrides, parser)
    return arguments


def _require_csv_log(cli: PackmambaCLI) -> None:
    if not isinstance(cli.trainer.logger, CSVLogger):
        raise UsageError("the quickstart draws its pictures from the CSV log: leave trainer.logger unset")


def _validate(cli: PackmambaCLI) -> None:
    (metrics,) = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    console.print(
        f"{metrics['val/loss']:.3f} nats a token, perplexity {metrics['val/perplexity']:.2f} over tokens, "
        f"{metrics['val/document_perplexity']:.2f} document by document"
    )


def _compare(cli: PackmambaCLI, num_documents: int, repeats: int) -> list[ModeResult]:
    datamodule, model = cli.datamodule, cli.model
    assert isinstance(datamodule, PackedDataModule)
    assert isinstance(model, LitHybridLM)
    documents = datamodule.documents("train")
    chosen = np.random.default_rng(0).permutation(documents.rows)[:num_documents]
    begins, corpus = documents.corpus.offsets[chosen], documents.corpus
    tokens = [
        corpus.tokens[begin : begin + length].astype(np.int64)
        for begin, length in zip(begins, corpus.lengths[chosen], strict=True)
    ]
    console.print(f"{len(tokens)} documents, {sum(map(len, tokens)):,} tokens, packs of {datamodule.capacity}")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    comparison = Comparison(model.config, cut(tokens, datamodule.capacity), datamodule.capacity, compute=model.compute)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Training passes", total=len(MODES) * (repeats + 1))
        return comparison.run(repeats, on_pass=lambda mode: progress.advance(task))


def _print_results(results: Sequence[ModeResult]) -> None:
    table = Table("mode", box=None, header_style="bold")
    for column in ("tokens/s", "slowest - fastest", "padding", "steps", "packed is"):
        table.add_column(column, justify="right")
    packed = results[0].tokens_per_second
    for result in results:
        table.add_row(
            result.mode,
            f"{result.tokens_per_second:,.0f}",
            f"{result.slowest:,.0f} - {result.fastest:,.0f}",
            f"{result.padding_fraction:.1%}",
            str(result.num_steps),
            "" if result is results[0] else f"{packed / result.tokens_per_second:.2f}x as fast",
        )
    console.print(table)
    console.print("Real tokens only; all three gave the same loss on the same parameters before they were timed.")


def _relative(path: Path) -> Path:
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
