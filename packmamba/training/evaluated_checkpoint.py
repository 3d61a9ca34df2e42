"""A checkpoint that is to be evaluated or resumed, looked at before any data is read."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from packmamba.config import ModelConfig
from packmamba.errors import MissingFileError, UsageError, UsageFileError
from packmamba.training.checkpoint_files import damage_of, newest_first, require_whole
from packmamba.training.lit import LitHybridLM, check_same_config

WORDS = ("best", "last", "hpc", "registry")
"""What Lightning takes in place of a file."""


def read_checkpoint(path: str | Path, *, weights_only: bool = True) -> dict[str, Any]:
    """What a checkpoint file holds; its tensors are read when they are looked at. Empty for a sharded checkpoint.

    Raises MissingFileError where there is none; UsageError for a word such as `last`; UsageFileError for a folder that
    is none, a file that is damaged, is no checkpoint, or was not written by LitHybridLM.
    """
    if path in WORDS:
        raise UsageError(f"ckpt_path {path!r} means a checkpoint of a training in the same process; name a file")
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"ckpt_path {str(path)!r} does not exist{_there(path.parent)}")
    if path.is_dir():
        if damage_of(path) is None:
            return {}
        raise UsageFileError(
            f"ckpt_path {str(path)!r} is a folder, not a checkpoint; name a file{_there(path, path / 'checkpoints')}"
        )
    require_whole(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except pickle.UnpicklingError as error:
        raise UsageFileError(
            f"ckpt_path {str(path)!r} holds Python objects, which can run code when they are read; if you trust it, "
            "set --weights_only false"
        ) from error
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise UsageFileError(f"ckpt_path {str(path)!r} is no checkpoint: torch.save did not write it") from error
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise UsageFileError(f"ckpt_path {str(path)!r} is no checkpoint of packmamba: it holds no training state")
    if "config" not in checkpoint.get(LitHybridLM.CHECKPOINT_HYPER_PARAMS_KEY, {}):
        raise UsageFileError(
            f"ckpt_path {str(path)!r} holds no model configuration: it was not written by packmamba's LitHybridLM"
        )
    return checkpoint


def check_model(checkpoint: dict[str, Any], config: ModelConfig) -> None:
    """Raises UsageError if a checkpoint's model configuration is not `config`, naming each field that differs."""
    stored = checkpoint.get(LitHybridLM.CHECKPOINT_HYPER_PARAMS_KEY, {}).get("config")
    if stored is not None:
        check_same_config(stored, config)


def require_checkpoint(command: str, path: str | None, folders: Sequence[Path], *, untrained: bool) -> None:
    """Raises UsageError unless an evaluation has either a checkpoint or `--untrained`. folders: of the run's earlier
    versions, whose newest checkpoint is suggested."""
    if path and untrained:
        raise UsageError(f"--untrained evaluates random weights, and --ckpt_path {path!r} names others; leave one out")
    if not path and not untrained:
        raise UsageError(
            f"{command} needs the weights to evaluate: --ckpt_path FILE{_there(*folders)}; or --untrained for random "
            "ones"
        )


def _there(*folders: Path) -> str:
    """The newest checkpoint of some folders, where there is one."""
    newest = newest_first(path for folder in folders for path in folder.glob("*.ckpt"))
    return f" (there is {newest[0]})" if newest else ""
