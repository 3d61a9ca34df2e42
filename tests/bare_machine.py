"""Python on a machine that has torch, triton, numpy and the test tools, and no other package of this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCKED = (
    "rich",
    "matplotlib",
    "lightning",
    "datasets",
    "jsonargparse",
    "yaml",
    "jinja2",
    "tokenizers",
    "transformers",
)


def run_on_a_bare_machine(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program, `sys` imported, in a folder."""
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n{code}"],
        cwd=folder,
        env={"PYTHONPATH": f"{root}:{root / 'kernels'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
