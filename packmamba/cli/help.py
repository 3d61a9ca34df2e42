"""The help page of a training command: the model and the data first, then the run, then what is used of the Trainer."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any

from jsonargparse import DefaultHelpFormatter

from packmamba.cli import COMMANDS
from packmamba.cli.run_output import OWN

TRAINER = {
    "max_steps": "Train for so many optimiser steps.",
    "max_epochs": "Train for so many epochs; whichever of the two ends first.",
    "max_time": "Stop after so long: DD:HH:MM:SS.",
    "accelerator": "cpu, gpu, mps, or auto.",
    "devices": "How many of them, a list of their numbers, or auto.",
    "num_nodes": "Machines that train together.",
    "strategy": "How several devices share the work: ddp, fsdp, ..., or auto.",
    "precision": "32-true, bf16-mixed, 16-mixed, bf16-true, ...",
    "accumulate_grad_batches": "Packs of an optimiser step on each device.",
    "gradient_clip_val": "Gradients are scaled down to this norm at most; null for no limit.",
    "val_check_interval": "Validate every so many batches (a whole number), or after this part of an epoch (0.25).",
    "limit_val_batches": "Validate on so many batches, or on this part of them; 0 for no validation.",
    "log_every_n_steps": "Optimiser steps between two rows of the log.",
    "callbacks": "Callbacks of Lightning's or of your own: `class_path` and `init_args`, in YAML.",
    "default_root_dir": "The folder that is `runs` by default.",
}
"""The options of Lightning's Trainer that a help page shows, in this order, and what it says of them."""

TITLES = {
    "A HybridLM with its loss": "Model, optimiser and schedule",
    "The model. Checkpoints": "Model",
    "Packed batches of documents": "Data",
    "options": "The run",
}
"""Titles of groups, by how the docstring begins that they would be titled with."""

RUN = {
    "config": "A configuration that comes with packmamba, by its name, or the path of a YAML file.",
    "seed_everything": "Seed of all random numbers; true for another one in each run.",
    "ckpt_path": "Go on from this checkpoint.",
}
"""What a help page says of options that Lightning explains at length."""

GROUPS = ("model", "data", "", "best_checkpoint", "last_checkpoint", "trainer")
"""Groups of options by the first word of their names; the others have none."""

WIDTH = 80


class ShortFormatter(DefaultHelpFormatter):
    """Without lists of classes, and without the types of options whose values are listed anyway."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        text = re.sub(r",? ?known subclasses: [^)]*", "", text)
        text = re.sub(r"\{'class_path': '[\w.]*?(\w+)', 'init_args': \{[^}]*\}\}", r"\1", text)
        text = re.sub(r"<class '(\w+)'>", r"\1", text)
        if str(action.metavar or "{").startswith("{"):
            text = re.sub(r"type: Literal\[[^\]]*\](, )?", "", text)
        return text


def wants_help(arguments: list[str]) -> bool:
    """Whether the arguments of a command ask for its help page."""
    return any(argument in ("-h", "--help") for argument in arguments[1:])


def arrange(parser: Any, command: str, *, everything: bool) -> None:
    """Changes a parser for its help page alone; it cannot parse afterwards what it could before.

    everything: show all options, and all that is known of them.
    """
    for option, text in OWN.get(command, {}).items():
        name, _, value = option.partition(" ")
        extra = {"metavar": value} if value else {"action": "store_true"}
        parser.add_argument(name, help=text, default=argparse.SUPPRESS, **extra)
    if not everything:
        parser.formatter_class = ShortFormatter
    for action in parser._actions:
        if action.dest == "ckpt_path" and command != "fit":
            action.help = "The checkpoint to take the weights from."
        else:
            action.help = RUN.get(action.dest, action.help)
        if len(str(action.metavar or "")) > 60:
            action.metavar = "NAME"
        if not everything:
            _shorten(action)
    for group in parser._action_groups:
        first, title = _first_word(group), group.title or ""
        if first == "trainer":
            hint = "" if everything else f" (all: packmamba {command} --help all)"
            title = f"Lightning's Trainer{hint}"
            group._group_actions.sort(key=_place)
        title = next((short for begin, short in TITLES.items() if title.startswith(begin)), title)
        group.title = textwrap.shorten(title, WIDTH - 2, placeholder=" ...")
    parser._action_groups.sort(key=lambda group: GROUPS.index(_first_word(group)))
    parser.description = COMMANDS[command][1].capitalize() + "."
    parser.usage = f"packmamba {command} --config NAME_OR_FILE [--OPTION VALUE ...]"


def _shorten(action: argparse.Action) -> None:
    section, _, name = action.dest.partition(".")
    is_class_help = any(option.endswith(".help") for option in action.option_strings)
    hidden = (
        type(action).__name__ in ("_ActionConfigLoad", "ActionLink")
        or action.dest == "weights_only"
        or (section == "trainer" and (name not in TRAINER or is_class_help))
        or (is_class_help and action.option_strings != ["--data.source.help"])
    )
    if hidden:
        action.help = argparse.SUPPRESS
    elif is_class_help:
        action.help = "What a class takes, such as --data.source.help Files; so for every option that is a class."
    elif section == "trainer":
        action.help = TRAINER[name]


def _first_word(group: Any) -> str:
    words = {action.dest.partition(".")[0] for action in group._group_actions if "." in action.dest}
    word = words.pop() if len(words) == 1 else ""
    return word if word in GROUPS else ""


def _place(action: argparse.Action) -> int:
    name = action.dest.partition(".")[2]
    return list(TRAINER).index(name) if name in TRAINER else len(TRAINER)
