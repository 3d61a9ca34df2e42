"""The time for each token: what is measured, what is skipped, and how far sizes are apart."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.operators import cases as kernel_cases
from benchmarks.operators import scaling
from benchmarks.operators import tables as kernel_tables
from benchmarks.operators import timing as kernel_timing
from benchmarks.operators.cases import Case
from benchmarks.readme_tables import TABLES
from tests.bare_machine import run_on_a_bare_machine
from tests.interrupt import interrupt_third_call

SMALL = ["--device", "cpu", "--tokens", "40", "80", "--channels", "8", "--states", "4", "--runs", "1"]


def run(tmp_path, *arguments):
    output = tmp_path / "new" / "scaling.json"
    code = scaling.main([*SMALL, "--output", str(output), *arguments])
    return code, json.loads(output.read_text())


def test_every_size_distribution_and_part_is_timed_and_drawn(tmp_path, capsys):
    code, report = run(tmp_path, "--png", str(tmp_path / "pictures" / "scaling.png"))
    rows, shown = report["results"], capsys.readouterr().out
    assert code == 0
    assert {(row["op"], row["part"], row["distribution"], row["tokens"]) for row in rows} == {
        (op, part, distribution, tokens)
        for op in scaling.OPS
        for part in scaling.PARTS
        for distribution in ("lognormal", "giant", "tiny")
        for tokens in (40, 80)
    }
    assert all(row["milliseconds"]["median"] > 0 for row in rows)
    documents = {(row["distribution"], row["tokens"]): row["documents"] for row in rows}
    assert documents["giant", 80] == 1
    assert documents["tiny", 80] > documents["tiny", 40] > 1
    assert report["environment"]["device_type"] == "cpu"
    assert (tmp_path / "pictures" / "scaling.png").stat().st_size > 0
    table = TABLES["scaling"](report)
    assert table[0] == ["operator", "documents", "part", "T = 40", "T = 80", "spread"]
    assert len(table) == 1 + 2 * 2 * 3
    assert all(" | ".join(line) in shown for line in table)


def rows_of(*milliseconds):
    return [
        {
            "op": "selective_scan",
            "distribution": "tiny",
            "part": "forward",
            "tokens": 10**i,
            "skipped": None if median else "out of memory",
            "milliseconds": median and {"median": median},
        }
        for i, median in enumerate(milliseconds, start=3)
    ]


def test_the_spread_is_the_largest_distance_from_the_median():
    key = ("selective_scan", "tiny", "forward")
    rows = rows_of(0.001, 0.0108, 0.09, None)  # 1, 1.08 and 0.9 ns a token
    assert kernel_tables.spreads(rows) == {key: pytest.approx(10.0)}
    assert kernel_tables.scaling_table(rows)[1][3:] == ["1.00 ns", "1.08 ns", "0.90 ns", "out of memory", "±10.0%"]
    assert kernel_tables.spreads(rows_of(0.001, None)) == {key: None}


def test_a_size_that_runs_out_of_memory_is_skipped_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    measure = kernel_timing.measure

    def limited(name, case, *rest):
        if case.tokens > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(name, case, *rest)

    monkeypatch.setattr(kernel_timing, "measure", limited)
    code, report = run(tmp_path, "--distributions", "giant", "--png", str(tmp_path / "scaling.png"))
    assert code == 0
    skipped = {row["tokens"]: row["skipped"] for row in report["results"]}
    assert skipped == {40: None, 80: "out of memory"}
    assert "out of memory" in capsys.readouterr().out


def test_sizes_beyond_the_target_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_timing, "measure", lambda name, case, part, device, runs: [1.0])
    run(tmp_path, "--distributions", "giant", "--ops", "causal_conv1d")  # half the time for each of twice the tokens
    shown = capsys.readouterr().out
    assert "beyond ±5%: causal_conv1d giant forward ±33.3%, causal_conv1d giant backward ±33.3%" in shown
    monkeypatch.setattr(kernel_timing, "measure", lambda name, case, part, device, runs: [case.tokens / 1e3])
    run(tmp_path, "--distributions", "giant", "--ops", "causal_conv1d")
    assert "beyond ±5%: none" in capsys.readouterr().out


def test_a_call_is_given_the_schedule_that_was_built_once(monkeypatch):
    """Without it, it would be built in the call, and timed."""
    scan, schedules = kernel_cases.selective_scan, []

    def spy(*arguments, schedule=None, **rest):
        schedules.append(schedule)
        return scan(*arguments, schedule=schedule, **rest)

    monkeypatch.setattr(kernel_cases, "selective_scan", spy)
    case = Case("selective_scan", 50, 8, 4, "tiny", torch.float32)
    kernel_timing.measure("packmamba", case, "backward", torch.device("cpu"), 1)
    assert len(schedules) == 3
    assert all(schedule is case.packing().schedule for schedule in schedules)


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    interrupt_third_call(monkeypatch, scaling, "try_measure")
    code, report = run(tmp_path)
    assert code == 130
    assert len(report["results"]) == 2
    assert "interrupted after 2 of 24 measurements" in capsys.readouterr().out


def test_it_needs_torch_triton_and_numpy_only(tmp_path):
    arguments = [*SMALL, "--ops", "causal_conv1d", "--distributions", "giant"]
    done = run_on_a_bare_machine(
        f"from benchmarks.operators import scaling\nsys.exit(scaling.main({arguments}))", tmp_path
    )
    assert done.returncode == 0, done.stderr
