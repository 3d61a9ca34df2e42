"""The wheel, in an environment of its own, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(command: Sequence[str | Path], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**environment, "OMP_NUM_THREADS": "1"}
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the wheel. It finds this environment's packages, but not its editable
    packmamba, for the `.pth` files in a folder that a `.pth` file names are not read."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = ["install", "--no-deps", "--no-index", "--ignore-installed", "--quiet", wheel]
    run([sys.executable, "-m", "pip", "--python", python, *install], folder)
    assert run([python, "-c", "import packmamba; print(packmamba.__file__)"], folder).startswith(str(site))
    return folder / "bin"


def test_it_holds_the_packages_and_the_configurations_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "packmamba",
        "packmamba_kernels",
        wheel.name.partition("-py3")[0] + ".dist-info",
    }
    shipped = {Path(name).name for name in names if name.startswith("packmamba/configs/")}
    assert shipped == {path.name for path in (ROOT / "configs").iterdir()}
    for package in ("packmamba", "packmamba_kernels"):
        assert f"{package}/py.typed" in names


def test_the_quickstart_runs_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    options = ["--trainer.max_steps", "20", "--documents", "8", "--repeats", "1", "--trainer.limit_val_batches", "2"]
    out = run([environment / "packmamba", "quickstart", *options], tmp_path)
    for name in ("checkpoints/last.ckpt", "metrics.csv", "throughput.png"):
        assert f"runs/quickstart/version_0/{name}" in out
        assert (tmp_path / "runs" / "quickstart" / "version_0" / name).is_file()


def test_info_lists_the_shipped_configurations(environment: Path, tmp_path: Path) -> None:
    out = run([environment / "packmamba", "info", "--device", "cpu"], tmp_path)
    assert "mamba-1.4b, mamba-130m, quickstart" in " ".join(out.split())


def test_the_kernels_can_be_imported_alone(environment: Path, tmp_path: Path) -> None:
    code = "import sys, packmamba_kernels; print('packmamba' in sys.modules, packmamba_kernels.__file__)"
    out = run([environment / "python", "-c", code], tmp_path)
    assert out.startswith(f"False {environment.parent}")
