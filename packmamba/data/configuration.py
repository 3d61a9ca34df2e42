"""The `data` section of a training configuration, for commands that need documents but do not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_OTHER_SECTIONS = (
    "model",
    "trainer",
    "name",
    "logger",
    "progress",
    "resume",
    "untrained",
    "allow_other_data",
    "seed_everything",
    "best_checkpoint",
    "last_checkpoint",
    "ckpt_path",
    "weights_only",
)
"""What a configuration of `packmamba fit` holds beside `data`."""


def parse_configuration(arguments: Sequence[str]) -> tuple[ArgumentParser, Namespace]:
    """Options and files of `packmamba fit`, of which only `data` is checked, and their parser:
    `parser.instantiate(values).data` is the data module.

    Raises jsonargparse's ArgumentError for what cannot be understood.
    """
    parser = configuration_parser()
    return parser, parser.parse_args(list(arguments))


def configuration_parser() -> ArgumentParser:
    """The parser of `parse_configuration`."""
    from jsonargparse import ArgumentParser

    from packmamba.data import PackedDataModule

    parser = ArgumentParser(prog="packmamba pack", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(PackedDataModule, "data")
    for section in _OTHER_SECTIONS:
        parser.add_argument(f"--{section}", type=Any)
    return parser
