"""Where a measurement was made: device, versions and commit, so that a number can be read again later."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "packmamba",
    "torch",
    "triton",
    "numpy",
    "lightning",
    "mamba-ssm",
    "causal-conv1d",
    "flash-linear-attention",
    "flash-attn",
)
"""Distributions whose versions decide a measurement, where they are installed."""


def describe_environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """Plain values, ready for JSON: `device`, `device_type`, `memory_gib`, `threads`, `python`, `platform`,
    `versions` (null where a package is not installed), `cuda`, `commit`, `dirty` (null outside a checkout), `time`.

    device: what the measurement ran on; None: CUDA where there is one, else the CPU.
    """
    chosen = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    commit, dirty = _commit()
    return {
        "device": device_name(chosen),
        "device_type": chosen.type,
        "memory_gib": _memory_gib(chosen),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "commit": commit,
        "dirty": dirty,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device | str) -> str:
    """The GPU's or the processor's name, e.g. `NVIDIA H200` or `AMD EPYC 9654 96-Core Processor`."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    kib = next(int(line.split()[1]) for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
    return round(kib / 2**20, 1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    """The commit that holds this very file, and whether tracked files differ from it."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", here.parent, *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:  # git is not installed
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None, None
    status = git("status", "--porcelain", "--untracked-files=no", ":/")
    return git("rev-parse", "HEAD"), None if status is None else bool(status)
