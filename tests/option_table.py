"""Tables of options that a command refuses, and of its words."""

from __future__ import annotations

import shlex
from typing import Any

import pytest


def refusals(table: str) -> list[Any]:
    """Parameters (arguments, message), a case each line of `name | arguments, as in a shell | message`."""
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.strip().splitlines()]
    return [pytest.param(shlex.split(arguments), message, id=name) for name, arguments, message in rows]
