"""Loggers by name share the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import lightning.pytorch.loggers
from lightning.pytorch.loggers import CSVLogger

from packmamba.errors import MissingPackageError
from packmamba.training import loggers
from packmamba.training.loggers import make_loggers


def test_csv_writes_into_the_next_version_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "a" / "version_3").mkdir(parents=True)
    (log,) = make_loggers("csv", tmp_path, "a")
    assert isinstance(log, CSVLogger)
    assert Path(log.log_dir) == tmp_path / "a" / "version_4"
    (log,) = make_loggers("csv", tmp_path, "a", 7)
    assert Path(str(log.log_dir)) == tmp_path / "a" / "version_7"


@pytest.mark.parametrize(("kind", "name"), [("tensorboard", "TensorBoardLogger"), ("wandb", "WandbLogger")])
def test_others_join_the_csv_log_in_its_folder(
    kind: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: object())
    monkeypatch.setattr(lightning.pytorch.loggers, name, lambda *args, **options: made.append(options) or "other")
    log, other = make_loggers(kind, tmp_path, "a")
    assert isinstance(log, CSVLogger)
    assert other == "other"
    assert made[0]["name"] == "a"
    if kind == "wandb":
        assert made[0]["project"] == "packmamba"
        assert made[0]["save_dir"] == log.log_dir
    else:
        assert made[0]["version"] == log.version == 0


def test_what_is_not_installed_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(MissingPackageError, match="needs wandb: pip install wandb"):
        make_loggers("wandb", tmp_path, "a")
