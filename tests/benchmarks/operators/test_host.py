"""Measuring host time: with launches that do nothing where there is no GPU.

In a process of its own, for the driver that does nothing stays loaded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packmamba_kernels.runtime.triton_glue import INTERPRET

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available() or INTERPRET, reason="of launches that do nothing"),
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"),
]


def run_python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_every_operator_is_measured_with_its_launches_and_written_down(tmp_path):
    output = tmp_path / "new" / "host.json"
    table = run_python("-m", "benchmarks", "host", "--runs", "2", "--output", str(output))
    report = json.loads(output.read_text())
    assert report["launches"] == "do nothing"
    assert "kernel launches did nothing" in table
    rows = {row["op"]: row for row in report["results"]}
    assert set(rows) == {"autograd alone", "causal_conv1d", "selective_scan", "mamba1_inner"}
    assert rows["autograd alone"]["launches"] == 0
    assert rows["causal_conv1d"]["launches"] == 3
    assert rows["selective_scan"]["launches"] >= 5
    assert rows["mamba1_inner"]["launches"] == rows["selective_scan"]["launches"] + 4  # one more forward convolution
    for row in rows.values():
        assert set(row["microseconds"]) == {"forward", "backward", "both"}
        for times in row["microseconds"].values():
            assert 0 < times["min"] <= times["median"]


AFTERWARDS = """
import torch
from packmamba_kernels import causal_conv1d
from benchmarks.compiler.no_gpu import launches_do_nothing
x, weight = torch.randn(70, 8), torch.randn(8, 4)
wanted = causal_conv1d(x, weight)
with launches_do_nothing() as driver:
    causal_conv1d(x, weight)
    inside = driver.launches
got = causal_conv1d(x, weight)
print(inside, driver.launches, torch.equal(wanted, got))
"""


def test_launches_do_nothing_only_inside():
    assert run_python("-c", AFTERWARDS).split() == ["1", "1", "True"]
