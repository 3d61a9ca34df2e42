"""Loggers by name, for runs whose folder is `ROOT/NAME/version_N`."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger

from packmamba.errors import MissingPackageError

LoggerName = Literal["csv", "tensorboard", "wandb", "none"]

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""What a logger needs: one of these."""


class FolderLogger(CSVLogger):
    """Logs nothing, but gives a run its folder, for its configuration and its checkpoints."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        pass

    def save(self) -> None:
        pass


def make_loggers(kind: LoggerName, root: Path, name: str, version: int | None = None) -> list[Logger]:
    """The loggers of a run, the first of which owns the folder `root/name/version_N`.

    kind: `csv` writes metrics.csv; `tensorboard` and `wandb` write that too, and what they are named after: event files
    in the same folder, or a run `name` of the project `packmamba`, whose local files are in it; `none` writes neither.
    version: N; None for the first that is not there.

    Raises MissingPackageError where TensorBoard or wandb is not installed.
    """
    packages = _PACKAGES.get(kind, ())
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        raise MissingPackageError(f"--logger {kind} needs {packages[0]}: pip install {packages[0]}")
    if kind == "none":
        return [FolderLogger(root, name=name, version=version)]
    log = CSVLogger(root, name=name, version=version)
    if kind == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return [log, TensorBoardLogger(root, name=name, version=log.version, default_hp_metric=False)]
    if kind == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return [log, WandbLogger(name=name, project="packmamba", save_dir=log.log_dir)]
    return [log]
