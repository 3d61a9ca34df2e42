"""Ctrl-C in the middle of a benchmark."""

from __future__ import annotations

from typing import Any

import pytest


def interrupt_third_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """From now on the third call of a module's function raises KeyboardInterrupt."""
    function, calls = getattr(module, name), []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(module, name, interrupted)
