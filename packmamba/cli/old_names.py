"""Options of earlier versions, moved to the names they have now before anything is parsed.

`model.config.recompute` and `model.config.attention.backend` say how a model is computed, not what it computes: they
are `model.compute.recompute` and `model.compute.attention_backend`. Both are known on the command line and in files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packmamba.config import split_old_config
from packmamba.errors import UsageError
from packmamba.shipped_configs import replace_configs

RENAMED = {
    "model.config.recompute": "model.compute.recompute",
    "model.config.attention.backend": "model.compute.attention_backend",
}
"""Old names and the names they have now."""


def rename_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of `packmamba fit` with new names, and with the content of configuration files that have old ones.

    Says on stderr what was renamed. Raises UsageError where the old and the new name are given different values in one
    place: the command line, or one file. An option on the command line replaces a file's, whichever names they have.
    """
    renamed: list[str] = []
    old: dict[str, str] = {}
    new: dict[str, str] = {}
    rest = replace_configs(arguments, _renamed_file)
    while rest:
        name, separator, value = rest.pop(0).partition("=")
        option = name.removeprefix("--")
        if not separator and rest and (option in RENAMED or option in RENAMED.values()):
            separator, value = " ", rest.pop(0)
        if separator and option in RENAMED:
            old[option] = value
            option = RENAMED[option]
            name = f"--{option}"
        elif separator and option in RENAMED.values():
            new[option] = value
        renamed += [name, value] if separator == " " else [f"{name}{separator}{value}"]
    for option, value in old.items():
        _check_same(option, value, new.get(RENAMED[option], value), "the command line")
        _say(option, "the command line")
    return renamed


def rename_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A training configuration with new names; itself where it has none of the old ones."""
    model = values.get("model")
    config = model.get("config") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(config, dict):
        return values
    config, moved = split_old_config(config)
    if not moved:
        return values
    compute = dict(model.get("compute") or {})
    for option, new_option in RENAMED.items():
        key = new_option.rpartition(".")[2]
        if key in moved:
            _check_same(option, moved[key], compute.get(key, moved[key]), where)
            _say(option, where)
    return values | {"model": model | {"config": config, "compute": compute | moved}}


def _renamed_file(path: str) -> str:
    """The path, or the file's content as JSON (which is YAML) where it has old names. What cannot be read is left to
    the parser, which says why."""
    from jsonargparse import get_loader

    if not Path(path).is_file():
        return path
    try:
        values = get_loader("yaml")(Path(path).read_text())
    except Exception:
        return path
    renamed = rename_values(values, path) if isinstance(values, dict) else values
    return path if renamed is values else json.dumps(renamed)


def _check_same(option: str, old: Any, new: Any, where: str) -> None:
    if old != new:
        raise UsageError(
            f"{where} gives {RENAMED[option]} twice: {new!r}, and {old!r} by its old name {option}; leave one out"
        )


def _say(option: str, where: str) -> None:
    print(f"packmamba: {where}: {option} is {RENAMED[option]} now", file=sys.stderr)
