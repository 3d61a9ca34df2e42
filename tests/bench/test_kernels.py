"""The kernel benchmark: it measures what agrees, says what is missing, keeps what it has."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from packmamba.bench import kernel_cases, kernels
from packmamba.bench.kernel_cases import Case, Implementation, bytes_moved, special_functions
from tests.bench.bare_machine import run_on_a_bare_machine

SMALL = ["--device", "cpu", "--tokens", "70", "--channels", "8", "--states", "4", "--runs", "2"]
CONV = Case("causal_conv1d", 70, 8, None, "giant", torch.float32)


def run(tmp_path, *arguments):
    output = tmp_path / "kernels.json"
    code = kernels.main([*SMALL, "--output", str(output), *arguments])
    return code, json.loads(output.read_text())


def test_every_operator_and_part_is_timed_and_missing_peers_are_listed(tmp_path, capsys):
    code, report = run(tmp_path, "--distributions", "lognormal", "giant", "--png", str(tmp_path / "kernels.png"))
    shown = capsys.readouterr().out
    assert code == 0
    assert report["environment"]["device_type"] == "cpu"
    timed = {
        (row["op"], row["part"], row["implementation"]) for row in report["results"] if row["milliseconds"] is not None
    }
    assert timed == {
        (op, part, name) for op in kernels.OPS for part in kernels.PARTS for name in ("packmamba", "naive")
    }
    for row in report["results"]:
        assert (row["milliseconds"] is None) == (row["skipped"] is not None)
        assert row["documents"] == 1 or row["distribution"] == "lognormal"
    for peer in ("mamba-ssm", "causal-conv1d", "fla"):
        assert any(peer in line and "missing" in line for line in shown.splitlines()), peer
    assert "x the definition forward" in shown
    assert (tmp_path / "kernels.png").stat().st_size > 0


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    measure, calls = kernels.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(kernels, "measure", interrupted)
    code, report = run(tmp_path, "--distributions", "giant")
    assert code == 130
    assert len(report["results"]) == 2
    assert "interrupted after 2 of" in capsys.readouterr().out


def wrong(case, packing):
    right = kernel_cases.ours(case, packing)
    return lambda inputs: right(inputs) * 1.01


def test_an_operator_that_disagrees_with_the_definition_is_not_timed(monkeypatch):
    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "packmamba", Implementation(kernels.OPS, wrong))
    with pytest.raises(RuntimeError, match="packmamba differs from the definition in out"):
        kernels.run([CONV], torch.device("cpu"), runs=1, naive_tokens=0, on_result=print)


@pytest.mark.parametrize("op", kernels.OPS)
def test_a_peer_that_disagrees_is_reported(op, monkeypatch):
    monkeypatch.setattr(kernels, "why_not", lambda name, *_: None if name == "peer" else "left out")
    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "peer", Implementation((op,), wrong, package="peer"))
    rows = []
    case = dataclasses.replace(CONV, op=op, states=4 if op == "selective_scan" else None)
    kernels.run([case], torch.device("cpu"), runs=1, naive_tokens=0, on_result=rows.append)
    mine = [row for row in rows if row["implementation"] == "peer"]
    assert len(mine) == 2
    assert all(row["skipped"].startswith("failed: peer differs") and row["milliseconds"] is None for row in mine)


def test_the_definition_is_left_out_beyond_its_limit(tmp_path):
    _, report = run(tmp_path, "--distributions", "giant", "--ops", "causal_conv1d", "--naive-tokens", "69")
    naive = [row for row in report["results"] if row["implementation"] == "naive"]
    assert all(row["skipped"] == "only up to 69 tokens (--naive-tokens)" for row in naive)


def test_bounds_count_every_tensor_once():
    conv = Case("causal_conv1d", 1000, 64, None, "equal", torch.bfloat16)
    assert bytes_moved(conv, "forward") == 2 * 1000 * 64 * 2 + 4 * 64 * 5
    assert bytes_moved(conv, "backward") == 3 * 1000 * 64 * 2 + 2 * 4 * 64 * 5
    scan = Case("selective_scan", 1000, 64, 16, "equal", torch.bfloat16)
    assert bytes_moved(scan, "forward") == (4 * 64 + 2 * 16) * 1000 * 2 + 4 * 64 * 18
    assert special_functions(scan) == 1000 * 64 * 20
    limits = {"bytes_per_second": 1e9, "special_functions_per_second": None}
    expected = {"bytes": 1e-6 * bytes_moved(conv, "forward"), "special_functions": None}
    assert kernels.bounds(conv, "forward", limits) == pytest.approx(expected)


BAD = {
    "unknown operator": (["--ops", "conv"], "invalid choice: 'conv'"),
    "unknown distribution": (["--distributions", "zipf"], "invalid choice: 'zipf'"),
    "no tokens": (["--tokens", "0"], "must be at least 1, got 0"),
    "no GPU": (["--device", "cuda"], "--device cuda: torch finds no CUDA device here"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_refused_by_name(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        kernels.main(arguments)
    assert message in capsys.readouterr().err


def test_a_picture_without_matplotlib_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        kernels.main([*SMALL, "--png", "x.png"])
    assert "pip install 'packmamba[plots]'" in capsys.readouterr().err


def test_it_needs_torch_triton_and_numpy_only(tmp_path):
    code = f"""
from packmamba.bench import kernels
sys.exit(kernels.main({[*SMALL, "--ops", "causal_conv1d", "--distributions", "giant"]}))
"""
    done = run_on_a_bare_machine(code, tmp_path)
    assert done.returncode == 0, done.stderr
