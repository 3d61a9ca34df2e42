"""Optimisers and schedules as plain values, which checkpoints and hparams.yaml hold: class_path and init_args."""

from __future__ import annotations

import importlib
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

from packmamba.errors import UsageError, UsageTypeError

T = TypeVar("T")


def described(value: Any) -> dict[str, Any]:
    """The class and the fields of a dataclass, as YAML names them. Raises UsageTypeError if it is no dataclass."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if not is_dataclass(value) or isinstance(value, type):
        raise UsageTypeError(f"{name} must be a dataclass, so that a checkpoint can say what its fields were")
    return {"class_path": name, "init_args": asdict(value)}


def restored(value: T | dict[str, Any], base: type[T], option: str) -> T:
    """The object that `described` described; an object itself as it is.

    Raises UsageError for a class that cannot be imported or does not derive from `base`, naming the option.
    """
    if isinstance(value, dict):
        module, _, name = value["class_path"].rpartition(".")
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"model.{option}: {value['class_path']} cannot be imported: {error}") from error
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise UsageError(f"model.{option}: {value['class_path']} is no {base.__name__}")
        return kind(**value["init_args"])
    if not isinstance(value, base):
        raise UsageTypeError(f"{option} must be a {base.__name__} such as those of {base.__module__}, got {value!r}")
    return value
