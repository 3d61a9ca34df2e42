"""Options of the Trainer are checked by their ranges, and against the machine."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lightning")

import torch

from packmamba.cli.trainer_options import check_seed, check_trainer
from packmamba.errors import UsageError


def test_values_that_lightning_takes_pass() -> None:
    for values in (
        {},
        {"max_steps": -1, "max_epochs": None, "val_check_interval": 0.5, "limit_val_batches": 0, "devices": "auto"},
        {"max_steps": 2**63 - 1, "limit_train_batches": 1.0, "gradient_clip_val": 0, "fast_dev_run": True},
        {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "precision": "bf16-mixed", "profiler": "simple"},
        {"accelerator": "cpu", "strategy": "my.own.Strategy", "val_check_interval": "00:15:00", "devices": [0, 1]},
        {"num_sanity_val_steps": -1, "overfit_batches": 0.0, "log_every_n_steps": None},
    ):
        check_trainer(values)
    for seed in (0, 2**32 - 1, True, False, None):
        check_seed(seed)


@pytest.mark.parametrize(
    ("devices", "accepted"), [("2", True), (2, True), (-1, True), ("0,1", True), ([1], True), (3, False), ([2], False)]
)
def test_gpus_are_counted(devices: Any, accepted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    values = {"accelerator": "gpu", "devices": devices, "precision": "16-mixed", "strategy": "fsdp"}
    if accepted:
        check_trainer(values)
        return
    with pytest.raises(UsageError, match=r"trainer.devices must be a number from 1 to 2 \(GPUs\), or auto, got"):
        check_trainer(values)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20])
def test_seeds_that_numpy_does_not_take_are_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"seed_everything must be from 0 to 4294967295.*got {seed}"):
        check_seed(seed)
