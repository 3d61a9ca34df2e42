"""Runs the operators' tests once more with their Triton kernels: in Triton's interpreter, where the CPU stands in for a
GPU, and on a GPU where there is one.

TRITON_INTERPRET has to be set before triton is imported, so each module runs in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packmamba_kernels.runtime.triton_glue import INTERPRET

from tests.support import DEVICE

MODULES = {
    "causal_conv1d/test_causal_conv1d.py": 50,
    "gated_rms_norm/test_gated_rms_norm.py": 40,
    "selective_scan/test_kernels.py": 30,
    "selective_scan/test_layout.py": 20,
    "selective_scan/test_production.py": 3,
    "test_mixer_kernel.py": 2,
}
"""Test modules whose operators then run their kernels, and at least how many tests of each must have passed."""

GPU_MODULES = MODULES | {"selective_scan/test_selective_scan.py": 80}
"""The same on a GPU, where long documents cost nothing."""


@pytest.mark.skipif(INTERPRET or DEVICE != "cpu", reason="already such a run")
@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_kernels_pass_the_operators_tests_in_the_interpreter(module):
    run_module(module, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRET or DEVICE != "cpu", reason="already such a run")
@pytest.mark.parametrize("module", GPU_MODULES)
def test_kernels_pass_the_operators_tests_on_a_gpu(module):
    run_module(module, PACKMAMBA_TEST_DEVICE="cuda")


def run_module(module, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(Path(__file__).parent / module), "-p", "no:cacheprovider"],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-2000:]
    assert int(passed[1]) >= GPU_MODULES[module], done.stdout[-2000:]
