"""The scripts in examples/ run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

ARGUMENTS = {"packed_equals_separate.py": [], "train_from_python.py": ["--steps", "4", "--output", "runs"]}

EXPECTED = {
    "packed_equals_separate.py": ["no, every bit the same", "3 documents, 76 tokens"],
    "train_from_python.py": ["nats a byte", "last.ckpt"],
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.slow
def test_example_runs(name: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *ARGUMENTS[name]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES.parent / "kernels")])},
    )
    assert process.returncode == 0, process.stderr
    for words in EXPECTED[name]:
        assert words in process.stdout
