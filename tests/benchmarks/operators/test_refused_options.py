"""Options that the benchmarks of the operators refuse, and what they say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.operators import accuracy, kernels
from tests.option_table import refusals

REFUSED = {
    accuracy: """
        no GPU | --implementations cuda | --implementations cuda: torch finds no CUDA device here; use reference
        unknown implementation | --implementations gpu | invalid choice: 'gpu'
        unknown step size | --steps tiny | invalid choice: 'tiny'
        one token | --tokens 1 | --tokens must be at least 2, got 1: the gradient of A is zero for one token
        no channels | --channels 0 | must be a whole number of at least 1, got '0'
        states | --states 5 | invalid choice: 5
    """,
    kernels: """
        unknown operator | --ops conv | invalid choice: 'conv'
        unknown distribution | --distributions zipf | invalid choice: 'zipf'
        no tokens | --tokens 0 | must be a whole number of at least 1, got '0'
        no GPU | --device cuda | --device cuda: torch finds no CUDA device here
    """,
}


def refuse(benchmark, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), refusals(REFUSED[accuracy]))
def test_accuracy_refuses_bad_options_by_name(arguments, message, capsys, monkeypatch):
    refuse(accuracy, arguments, message, capsys, monkeypatch)


@pytest.mark.parametrize(("arguments", "message"), refusals(REFUSED[kernels]))
def test_kernels_refuses_bad_options_by_name(arguments, message, capsys, monkeypatch):
    refuse(kernels, arguments, message, capsys, monkeypatch)
