"""The kernel benchmark: it measures what agrees, says what is missing, keeps what it has."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import types

import pytest
import torch
from packmamba_kernels.selective_scan.naive import selective_scan_naive

from benchmarks.operators import cases as kernel_cases
from benchmarks.operators import kernels
from benchmarks.operators import tables as kernel_tables
from benchmarks.operators import timing as kernel_timing
from benchmarks.operators.cases import Case, Implementation, bytes_moved, special_functions
from packmamba.packing import Packing
from tests.bare_machine import run_on_a_bare_machine
from tests.interrupt import interrupt_third_call

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
    interrupt_third_call(monkeypatch, kernels, "try_measure")
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
    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "peer", Implementation((op,), wrong, peer=True))
    rows = []
    case = dataclasses.replace(CONV, op=op, states=4 if op == "selective_scan" else None)
    kernels.run([case], torch.device("cpu"), runs=1, naive_tokens=0, on_result=rows.append)
    mine = [row for row in rows if row["implementation"] == "peer"]
    assert len(mine) == 2
    assert all(row["skipped"].startswith("failed: peer differs") and row["milliseconds"] is None for row in mine)


SCAN = Case("selective_scan", 64, 8, 4, "lognormal", torch.float32)


def naive_rows(u, delta, A, B, C, D, z, delta_bias, delta_softplus, position_indices=None):
    """selective_scan_fn's channel-first interface (rows, width, L), by the definition."""
    rows, _, length = u.shape
    documents = [length] * rows
    if position_indices is not None:
        assert rows == 1
        documents = Packing.from_position_ids(position_indices).host_lengths
    packed = {"u": u, "delta": delta, "B": B, "C": C, "z": z}
    assert all(value.is_contiguous() for value in packed.values())
    packed = {name: value.transpose(1, 2).flatten(0, 1) for name, value in packed.items()}
    out = selective_scan_naive(
        **packed,
        A=A,
        D=D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        cu_seqlens=Packing.from_lengths(documents).cu_seqlens,
    )
    return out.unflatten(0, (rows, length)).transpose(1, 2)


def install_scan(monkeypatch, function):
    """mamba-ssm, as far as the benchmark of the scan knows it."""
    module = types.SimpleNamespace(selective_scan_fn=function)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", module)


def upstream(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    return naive_rows(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def peers_on(distribution, tokens=3 * 1024):
    case = dataclasses.replace(SCAN, distribution=distribution, tokens=tokens)
    names = ("mamba-ssm (no resets)", "mamba-ssm fork")
    return case, {name: kernels.why_not(name, case, torch.device("cuda"), 0) for name in names}


def test_mamba_ssm_is_compared_wherever_all_documents_have_one_length(monkeypatch):
    install_scan(monkeypatch, upstream)
    for distribution in ("giant", "equal", "rows"):
        case, reasons = peers_on(distribution)
        assert reasons["mamba-ssm (no resets)"] is None
        assert reasons["mamba-ssm fork"] == "missing: the installed mamba-ssm takes no document boundaries"
        kernel_timing.check("mamba-ssm (no resets)", case, torch.device("cpu"))
        assert (
            len(
                kernel_timing.measure(
                    "mamba-ssm (no resets)", dataclasses.replace(case, tokens=1024), "backward", torch.device("cpu"), 1
                )
            )
            == 1
        )
    for distribution, tokens in (("lognormal", 3072), ("tiny", 3072), ("rows", 3000)):
        _, reasons = peers_on(distribution, tokens)
        assert reasons["mamba-ssm (no resets)"].startswith("keeps no documents apart")


def test_rows_of_a_batch_are_checked_as_such(monkeypatch):
    """One that joins the rows of a batch is found out."""
    install_scan(monkeypatch, lambda u, **rest: upstream(u.roll(1, 0), **rest))
    case, _ = peers_on("rows")
    with pytest.raises(RuntimeError, match="differs from the definition in out"):
        kernel_timing.check("mamba-ssm (no resets)", case, torch.device("cpu"))


@pytest.mark.parametrize("distribution", ["lognormal", "tiny", "rows", "giant"])
def test_a_fork_is_told_by_its_signature_and_runs_on_all_documents(distribution, monkeypatch):
    install_scan(monkeypatch, naive_rows)
    case, reasons = peers_on(distribution)
    assert reasons["mamba-ssm fork"] is None
    kernel_timing.check("mamba-ssm fork", case, torch.device("cpu"))


def test_a_fork_that_leaks_between_documents_is_found_out(monkeypatch):
    def leaking(u, position_indices=None, **rest):
        return naive_rows(u, **rest)

    install_scan(monkeypatch, leaking)
    with pytest.raises(RuntimeError, match="mamba-ssm fork differs from the definition in out"):
        kernel_timing.check("mamba-ssm fork", dataclasses.replace(SCAN, distribution="tiny"), torch.device("cpu"))


def test_packed_time_is_set_against_rows_of_one_length(monkeypatch, tmp_path, capsys):
    _, report = run(tmp_path, "--distributions", "lognormal", "rows", "--tokens", "2048", "--naive-tokens", "0")
    rows = report["results"]
    assert capsys.readouterr().out.count("x the time of packmamba on equal rows") == len(kernels.OPS) * 2
    forward = [row for row in rows if (row["op"], row["part"], row["implementation"]) == (*KEY, "packmamba")]
    by_distribution = {row["distribution"]: row for row in forward}
    assert by_distribution["rows"]["documents"] == 2
    by_distribution["lognormal"]["milliseconds"]["median"] = 3.0
    by_distribution["rows"]["milliseconds"]["median"] = 2.0
    assert kernel_tables.over_unpacked(by_distribution["lognormal"], rows) == 1.5
    assert "1.50×" in "".join(kernel_tables.kernels_table(rows)[1 + 2 * 2])


KEY = ("selective_scan", "forward")


def test_a_grid_is_measured_by_name_and_says_which_sizes(tmp_path, monkeypatch, capsys):
    grid = (dataclasses.replace(SCAN, dtype=torch.float16), CONV, SCAN)
    monkeypatch.setitem(kernels.GRIDS, "targets", grid)
    output = tmp_path / "grid.json"
    assert kernels.main(["--device", "cpu", "--grid", "targets", "--runs", "1", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["results"]
    mine = [(row["op"], row["dtype"]) for row in rows if row["implementation"] == "packmamba"]
    half, conv, scan = ("selective_scan", "float16"), ("causal_conv1d", "float32"), ("selective_scan", "float32")
    assert mine == [half, half, conv, conv, scan, scan]
    assert all(row["skipped"] for row in rows if row["implementation"] == "naive")
    with pytest.raises(SystemExit, match="2"):
        kernels.main(["--grid", "targets", "--tokens", "64"])
    assert "--grid targets says which sizes; leave out --tokens" in capsys.readouterr().err


def test_targets_are_packmambas_own_on_a_gpu_in_bf16():
    gpu = torch.device("cuda")
    reached = {
        (case.op, case.tokens, part)
        for case in kernels.GRIDS["targets"]
        for part in kernels.PARTS
        if kernels.target("packmamba", case, part, gpu) is not None
    }
    assert reached == set(kernels.TARGETS)
    large = Case("selective_scan", 65_536, 4096, 16, "lognormal", torch.bfloat16)
    assert kernels.target("packmamba", large, "backward", gpu) == 6.0
    assert kernels.target("packmamba", large, "backward", torch.device("cpu")) is None
    assert kernels.target("fla", large, "backward", gpu) is None
    for other in ({"states": 64}, {"channels": 1536}, {"dtype": torch.float16}):
        assert kernels.target("packmamba", dataclasses.replace(large, **other), "forward", gpu) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "out of memory"), (ValueError("L too long"), "failed: L too long")],
    ids=["memory", "other"],
)
def test_a_peer_that_fails_at_full_size_says_why(error, reason, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "peer", Implementation((CONV.op,), fail, peer=True))
    outcome = kernel_timing.try_measure("peer", CONV, "forward", torch.device("cpu"), 1)
    assert outcome == {"skipped": reason, "milliseconds": None}


def test_packmamba_that_fails_is_an_error_but_for_memory(monkeypatch):
    def build(case, packing):
        raise ValueError("wrong")

    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "packmamba", Implementation((CONV.op,), build))
    with pytest.raises(ValueError, match="wrong"):
        kernel_timing.try_measure("packmamba", CONV, "forward", torch.device("cpu"), 1)


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
    assert kernel_timing.bounds(conv, "forward", limits) == pytest.approx(expected)


def test_a_picture_without_matplotlib_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        kernels.main([*SMALL, "--png", "x.png"])
    assert "pip install 'packmamba[plots]'" in capsys.readouterr().err


def test_it_needs_torch_triton_and_numpy_only(tmp_path):
    code = f"""
from benchmarks.operators import kernels
sys.exit(kernels.main({[*SMALL, "--ops", "causal_conv1d", "--distributions", "giant"]}))
"""
    done = run_on_a_bare_machine(code, tmp_path)
    assert done.returncode == 0, done.stderr
