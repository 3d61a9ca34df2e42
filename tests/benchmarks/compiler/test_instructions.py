"""Counting instructions of compiled kernels."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.__main__ import main as bench
from benchmarks.compiler import instructions


@pytest.mark.slow
def test_every_kernel_of_an_architecture_is_counted_and_written_down(tmp_path, capsys):
    output = tmp_path / "new" / "instructions.json"
    assert bench(["instructions", "--architectures", "90", "--states", "8", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert {(row["op"], row["kernel"]) for row in report["results"]} == {
        *(("causal_conv1d", name) for name in instructions.CONV_KERNELS),
        *(("selective_scan", name) for name in instructions.SCAN_KERNELS if name != "fold_states"),
    }
    forward = next(row for row in report["results"] if (row["op"], row["kernel"]) == ("selective_scan", "forward"))
    assert forward["special_functions"] >= 8  # an exponential for each state
    assert forward["instructions"] > 4 * 8
    assert forward["spilled_bytes"] == 0
    assert forward["issue_cycles"] >= max(forward["instructions"], 8 * forward["special_functions"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(report["results"])


@pytest.mark.slow
def test_cycles_are_left_open_where_no_model_knows_them():
    assert {row["issue_cycles"] for row in instructions.describe([100], states=8)} == {None}


def test_warps_on_an_sm_follow_from_registers():
    compiled = instructions.compile_conv("forward", 90)
    assert compiled.registers <= 64
    assert compiled.resident_warps() == 65_536 // (32 * 8 * -(-compiled.registers // 8))


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--states", "5"], "invalid choice: 5"), (["--architectures", "70"], "70")]
)
def test_what_cannot_be_compiled_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        instructions.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_benchmarks_are_listed_and_an_unknown_one_is_refused_by_name(capsys):
    assert bench([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in BENCHMARKS)
    with pytest.raises(SystemExit, match="unknown benchmark 'kernel'; available: kernels, "):
        bench(["kernel"])
