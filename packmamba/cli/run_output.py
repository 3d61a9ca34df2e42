"""What a training command prints and writes: its logger, its progress, its predictions, or only a check.

--check, --output and --overwrite are about one command line, so they are no part of a run's saved configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary as LightningModelSummary
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from packmamba.errors import FileInTheWayError, UsageError, usage_of
from packmamba.training.callbacks import PredictionWriter
from packmamba.training.loggers import LoggerName, make_loggers
from packmamba.training.model_summary import ModelSummary
from packmamba.training.progress import ProgressKind, make_progress

OWN = {
    "fit": {
        "--check": "Show what would be trained on, and how, and stop: 100 documents are tokenised, nothing is saved."
    },
    "predict": {
        "--output FILE": "Write the losses, a JSON object a document, to this file; - for stdout. Default: "
        "predictions.jsonl in the run's folder.",
        "--overwrite": "Replace the file of --output where it is there.",
    },
}
"""Options of one command line, by command: how each is written, and its help."""


def add_arguments(parser: LightningArgumentParser) -> None:
    """The options that all training commands have, and a configuration may hold."""
    parser.add_argument(
        "--logger",
        type=LoggerName,
        default="csv",
        help="csv: metrics.csv in the run's folder; tensorboard or wandb: that and event files there, or a run NAME of "
        "the project packmamba; none: no log.",
    )
    parser.add_argument(
        "--progress",
        type=ProgressKind,
        default="auto",
        help="bar: a progress bar; text: a line every few seconds; none; auto: a bar in a terminal, text elsewhere.",
    )


@dataclass(frozen=True)
class RunOutput:
    """The options of `OWN`."""

    check: bool = False
    output: str | None = None
    overwrite: bool = False

    @classmethod
    def take(cls, arguments: Sequence[str]) -> tuple[RunOutput, list[str]]:
        """These options, and the other arguments. arguments: a command and its options.

        Raises UsageError for an --output without a file, or one that cannot be written to.
        """
        known = {option.split()[0] for option in OWN.get(arguments[0], {})}
        given: dict[str, Any] = {}
        rest, words = [], list(arguments)
        while words:
            word = words.pop(0)
            name, equals, value = word.partition("=")
            if name not in known:
                rest.append(word)
            elif name == "--output":
                if not equals and (not words or words[0].startswith("--")):
                    raise UsageError("--output needs a file, or - for stdout")
                given["output"] = value if equals else words.pop(0)
            else:
                given[name.removeprefix("--")] = True
        options = cls(**given)
        options._require_writable()
        return options, rest

    def _require_writable(self) -> None:
        if self.output is None or self.output == "-":
            return
        path = Path(self.output)
        with usage_of("--output"):
            if path.is_dir():
                raise FileInTheWayError(f"--output {self.output!r} is a folder; name a file in it")
            if path.exists() and not self.overwrite:
                raise FileInTheWayError(f"--output {self.output!r} is there already; --overwrite replaces it")
            path.parent.mkdir(parents=True, exist_ok=True)

    def callbacks(self, command: str, values: Namespace) -> list[Callback]:
        """The callbacks of a run's configuration, with packmamba's for what it does not say itself."""
        given = values["trainer"]
        callbacks = given.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        if given.get("enable_progress_bar") is not False and not _any(callbacks, ProgressBar):
            progress = make_progress(values["progress"])
            callbacks += [] if progress is None else [progress]
        if command == "predict" and not _any(callbacks, PredictionWriter):
            callbacks.append(PredictionWriter(self.output))
        if (
            command == "fit"
            and given.get("enable_model_summary") is None
            and not _any(callbacks, LightningModelSummary)
        ):
            callbacks.append(ModelSummary())
        return callbacks

    def trainer_options(self, values: Namespace, root: Path, version: int | None = None) -> dict[str, Any]:
        """Options of the Trainer in place of those in a run's configuration. root, version: see `make_loggers`.

        Raises UsageError where two loggers are chosen.
        """
        given, options = values["trainer"], {}
        if given.get("enable_model_summary") is None and not _any(given.get("callbacks") or [], LightningModelSummary):
            options["enable_model_summary"] = False
        if values["progress"] == "none" and not _any(given.get("callbacks") or [], ProgressBar):
            options["enable_progress_bar"] = False
        if given.get("logger") in (None, True):
            options["logger"] = make_loggers(values["logger"], root, values["name"], version)
        elif values["logger"] != "csv":
            raise UsageError(f"--logger {values['logger']} and --trainer.logger choose two loggers; leave one out")
        return options


def _any(callbacks: Any, kind: type) -> bool:
    return any(isinstance(c, kind) for c in (callbacks if isinstance(callbacks, list | tuple) else [callbacks]))


@rank_zero_only
def print_metrics(results: Sequence[Mapping[str, float]]) -> None:
    """The numbers of an evaluation, a line each."""
    for name, value in (item for result in results for item in result.items()):
        number = f"{value:,.0f}" if name.endswith("/documents") else f"{value:.4f}"
        print(f"{name:<36} {number:>14}")
    sys.stdout.flush()
