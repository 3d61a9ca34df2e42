"""One command for all that needs a GPU: a part that fails does not stop the others. No GPU here: the parts stand in."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import main as bench
from benchmarks.readme_tables import UNMEASURED


@pytest.fixture
def ran(monkeypatch):
    """What ran, by name, and the exit code that each is to have."""
    arguments, codes = {}, {}

    def run_part(name, given):
        arguments[name] = list(given)
        return codes.get(name, 0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "run_part", run_part)
    return arguments, codes


def test_all_parts_write_where_the_tables_are_drawn_from(ran, capsys):
    arguments, _ = ran
    assert gpu.main([]) == 0
    assert list(arguments) == [name for name, _ in gpu.PARTS]
    assert arguments["kernels"][:4] == ["--grid", "targets", "--output", "benchmarks/results/kernels.json"]
    for name in UNMEASURED:
        assert f"benchmarks/results/{name}.json" in arguments[name]
        assert f"runs/gpu/{name}.png" in arguments[name]
    assert "failed: none" in capsys.readouterr().out


def test_folders_can_be_chosen_and_parts_left_out(ran):
    arguments, _ = ran
    assert gpu.main(["--only", "scaling", "--results", "a", "--pictures", "b"]) == 0
    assert arguments == {"scaling": ["--output", "a/scaling.json", "--png", "b/scaling.png"]}


class Parsed(Exception):
    """Raised once a command line has been understood, before anything is measured."""


@pytest.mark.parametrize(("name", "part"), gpu.PARTS, ids=[name for name, _ in gpu.PARTS])
def test_parts_are_benchmarks_that_take_their_arguments(name, part, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, arguments=None):
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    with pytest.raises(Parsed):
        bench([name, *gpu.arguments_of(part, Path("a"), Path("b"), draw=True)])


def test_a_part_that_fails_is_reported_and_the_others_go_on(ran, capsys):
    arguments, codes = ran
    codes["kernels"] = 3
    assert gpu.main([]) == 1
    assert len(arguments) == len(gpu.PARTS)
    shown = capsys.readouterr().out
    assert "== kernels: failed with exit code 3" in shown
    assert "failed: kernels; results" in shown


def test_pictures_are_left_out_without_matplotlib(ran, monkeypatch, capsys):
    arguments, _ = ran
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu.main([]) == 0
    assert arguments["scaling"] == ["--output", "benchmarks/results/scaling.json"]
    assert "pip install 'packmamba[plots]'" in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_refused(ran, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "torch finds no CUDA device here; `make bench` measures what a CPU can" in capsys.readouterr().err
    assert not ran[0]


@pytest.mark.slow
def test_a_part_runs_in_a_process_of_its_own(tmp_path):
    output = tmp_path / "scaling.json"
    small = ["--device", "cpu", "--tokens", "20", "--channels", "4", "--runs", "1", "--ops", "causal_conv1d"]
    assert gpu.run_part("scaling", [*small, "--output", str(output)]) == 0
    assert output.exists()
    assert gpu.run_part("scaling", ["--tokens", "0"]) == 2
