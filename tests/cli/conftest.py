"""A small training project, for the tests of every command."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small corpus and a configuration that trains a tiny model on it; the working directory."""
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    return tmp_path


def make_project(folder: Path) -> dict[str, Any]:
    """Writes the corpus and the configuration into a folder, and returns the configuration."""
    yaml = pytest.importorskip("yaml")  # here, so that GPU tests are collected where it is missing
    texts = [f"document {i} " + "abc " * (i % 7) for i in range(40)]
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = {
        "name": "tiny",
        "model": {
            "config": {"layer_pattern": "1*-", "d_model": 32, "vocab_size": 258, "attention": {"num_heads": 2}},
            "warmup_steps": 1,
        },
        "data": {
            "source": {"class_path": "packmamba.data.sources.Files", "init_args": {"paths": ["docs.jsonl"]}},
            "capacity": 64,
            "val_fraction": 0.2,
            "cache_dir": str(folder / "cache"),
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 3,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": 2,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return config


@pytest.fixture(autouse=True)
def no_errors_of_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's loggers hold on to the stderr of the test that imported it, which is closed."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
