"""What every benchmark's command line needs: numbers from options, results to a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def positive(text: str) -> int:
    """The `type` of an option that counts something, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes JSON, in a new folder if need be, in one step, so that an interrupt leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(path)
