"""`packmamba info`: versions, device, what each operator and attention backend would run here, configurations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from packmamba_kernels.explain import explain
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from packmamba.attention import explain_backends
from packmamba.cli.parser_errors import PlainParser
from packmamba.environment import describe_environment
from packmamba.errors import CannotRunError
from packmamba.shipped_configs import config_names


def describe(device: torch.device) -> dict[str, Any]:
    """`environment`, `operators` (name -> implementation and why), `attention` (backend -> reason it cannot run, or
    None), `configurations` (the names that `--config` takes), as plain values."""
    return {
        "environment": describe_environment(device),
        "operators": {name: asdict(choice) for name, choice in explain(device).items()},
        "attention": explain_backends(device),
        "configurations": config_names(),
    }


def main(argv: Sequence[str]) -> int:
    """argv: the command's options. Raises CannotRunError for CUDA where there is none."""
    parser = PlainParser(prog="packmamba info", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise CannotRunError("--device cuda: torch finds no CUDA device here; use --device cpu")
    found = describe(torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    console = Console()
    environment = found["environment"]
    versions = {"python": environment["python"], **environment["versions"], "cuda": environment["cuda"]}
    console.print(f"[bold]device[/] {environment['device']}, {environment['memory_gib']} GiB")
    console.print(
        "[bold]versions[/] " + ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    )
    _table(console, ("operator", "runs", "why"), [(name, *row.values()) for name, row in found["operators"].items()])
    backends = [
        (backend, "no" if reason else "yes", reason or "can run here") for backend, reason in found["attention"].items()
    ]
    _table(console, ("attention", "usable", "why"), backends)
    console.print(f"\n[bold]configurations[/] {', '.join(found['configurations'])}: --config NAME", highlight=False)
    return 0


def _table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print()
    console.print(table)
