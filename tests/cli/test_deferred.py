"""Starting a command does not import what it does not use; counted in modules, not in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNUSED = {"transformers", "matplotlib", "tensorboard", "wandb", "torchmetrics.functional"}


def loaded_after(code: str, folder: Path, **environment: str) -> tuple[set[str], str]:
    """Modules loaded after some code, and what it printed before."""
    code += "\nimport sys; print('LOADED', ' '.join(sys.modules))"
    path = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert process.returncode == 0, process.stderr
    printed, _, modules = process.stdout.rpartition("LOADED ")
    return set(modules.split()), printed


@pytest.mark.slow
def test_a_check_imports_neither_metrics_nor_plots_nor_loggers(project: Path) -> None:
    code = "from packmamba.cli import main; assert main(['fit', '--config', 'config.yaml', '--check']) == 0"
    loaded, printed = loaded_after(code, project)
    assert "One pack" in printed
    assert "lightning.pytorch" in loaded
    assert loaded & UNUSED == set()


@pytest.mark.slow
def test_printing_a_configuration_does_not_import_the_compiler(project: Path) -> None:
    code = "from packmamba.cli import main; assert main(['fit', '--config', 'config.yaml', '--print_config']) == 0"
    loaded, _ = loaded_after(code, project)
    assert loaded & (UNUSED | {"torch._dynamo"}) == set()


@pytest.mark.slow
def test_what_was_deferred_works_when_it_is_used(tmp_path: Path) -> None:
    code = """
from packmamba.cli.deferred import DeferredModule, import_lightning
import_lightning()
import sys, torch, torchmetrics
from lightning.pytorch.utilities.compile import to_uncompiled
assert isinstance(torchmetrics, DeferredModule) and "torch._dynamo" not in sys.modules
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy
assert issubclass(BinaryAccuracy, Metric)
assert torchmetrics.MeanMetric()(torch.ones(3)) == 1 and not isinstance(torchmetrics, DeferredModule)
assert torchmetrics.functional.accuracy and torchmetrics.utilities.data.dim_zero_sum
from lightning.fabric.wrappers import OptimizedModule
compiled = torch.compile(torch.nn.Linear(1, 1))
assert isinstance(compiled, OptimizedModule) and not isinstance(torch.nn.Linear(1, 1), OptimizedModule)
torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
"""
    loaded_after(code, tmp_path)


@pytest.mark.slow
def test_it_can_be_switched_off(tmp_path: Path) -> None:
    code = "from packmamba.cli.deferred import import_lightning; import_lightning(); import lightning.pytorch"
    loaded, _ = loaded_after(code, tmp_path, PACKMAMBA_DEFER="0")
    assert "torchmetrics.functional" in loaded
