"""What `packmamba compare` and the benchmarks share: options of one kind, and results written to a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from packmamba.errors import positive, usage_of

__all__ = ["add_device", "chosen_device", "positive", "write_report"]


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`, which `chosen_device` reads."""
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one")


def chosen_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """Leaves through argparse where a GPU is asked for that is not there."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes JSON, in a new folder if need be, in one step, so that an interrupt leaves a whole file.

    Raises UsageFileError where the folder cannot be made or written to.
    """
    partial = path.with_suffix(".partial")
    with usage_of("--output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(report, indent=2) + "\n")
        partial.replace(path)
