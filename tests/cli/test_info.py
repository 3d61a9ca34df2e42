"""`packmamba info` says what would run here, and why."""

from __future__ import annotations

import json

import pytest
import torch

from packmamba.cli import main
from packmamba.shipped_configs import config_names


def test_info_names_the_implementation_of_every_operator_and_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--device", "cpu"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    expected = (
        f"torch {torch.__version__}",
        "causal_conv1d",
        "gated_rms_norm",
        "selective_scan",
        "varlen",
        "sdpa",
        "packmamba[flash]",
        "mamba-130m",
    )
    for words in (*expected, "reference", "mamba-130m"):
        assert words in shown


def test_info_as_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["operators"]) == {"causal_conv1d", "gated_rms_norm", "selective_scan"}
    assert found["configurations"] == config_names()
    assert found["attention"]["sdpa"] is None
    assert "CUDA" in found["attention"]["varlen"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--device", "cuda"]) == 2
    assert "finds no CUDA device here; use --device cpu" in capsys.readouterr().err
