"""Hardware counters: ncu's table is read, and what keeps it from being read is said. A script stands in for ncu."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from benchmarks.operators import counters

HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)
WHERE = '"{id}","7","python3.11","127.0.0.1","{kernel}","1","7","(32, 1, 1)","(64, 1024, 1)","0","9.0"'
SECTION = '"Command line profiler metrics"'


def metric(id, kernel, name, unit, value):
    return f'{WHERE.format(id=id, kernel=kernel)},{SECTION},"{name}","{unit}","{value}"'


STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
OUTPUT = "\n".join(
    [
        "==PROF== Connected to process 7 (/usr/bin/python3.11)",
        '==PROF== Profiling "selective_scan_fwd_kernel" - 0: 0%....50%....100% - 3 passes',
        "a line of the program",
        "==PROF== Disconnected from process 7",
        HEADER,
        metric(0, "selective_scan_fwd_kernel", counters.DURATION, "ns", "1,900,000"),
        metric(0, "selective_scan_fwd_kernel", counters.ISSUE, "%", "81.25"),
        metric(0, "selective_scan_fwd_kernel", counters.SPECIAL, "%", "n/a"),
        metric(0, "selective_scan_fwd_kernel", counters.DRAM_BYTES[0], "byte", "1,500,000,000"),
        metric(0, "selective_scan_fwd_kernel", counters.DRAM_BYTES[1], "byte", "500,000,000"),
        metric(0, "selective_scan_fwd_kernel", STALL.format("selected"), "inst", "9"),
        metric(0, "selective_scan_fwd_kernel", STALL.format("wait"), "inst", "1.5"),
        metric(0, "selective_scan_fwd_kernel", STALL.format("long_scoreboard"), "inst", "2.5"),
        metric(1, "void at::native::fill<float, 4>(int, T1)", counters.DURATION, "ns", "2,048"),
        metric(2, "selective_scan_fwd_kernel", counters.DURATION, "ns", "nan"),
        "==WARNING== a line of ncu's own",
    ]
)


def test_a_metric_a_line_becomes_a_row_a_launch():
    rows = counters.parse(OUTPUT)
    assert [row["id"] for row in rows] == [0, 1, 2]
    first = rows[0]
    assert (first["kernel"], first["grid"], first["block"]) == (
        "selective_scan_fwd_kernel",
        "(64, 1024, 1)",
        "(32, 1, 1)",
    )
    assert first["metrics"][counters.DURATION] == 1.9e6
    assert first["units"][counters.DURATION] == "ns"
    assert first["metrics"][counters.ISSUE] == 81.25
    assert first["metrics"][counters.SPECIAL] is None
    assert rows[1]["kernel"] == "void at::native::fill<float, 4>(int, T1)"
    assert rows[2]["metrics"][counters.DURATION] is None


def test_the_table_shows_what_was_read_and_what_was_not():
    scan, fill, _ = counters.parse(OUTPUT)
    shown = counters.render_row(scan).split()
    assert shown == ["selective_scan_fwd_kernel", "1.900", "81.2", "?", "?", "?", "2.000", "?", "long", "scoreboard"]
    assert counters.render_row(fill).split()[-1] == "?"


@pytest.mark.parametrize(
    ("output", "message"),
    [("==ERROR== nothing", "printed no table"), (HEADER, "measured no kernel")],
    ids=["no-table", "no-kernel"],
)
def test_output_without_kernels_is_refused(output, message):
    with pytest.raises(ValueError, match=message):
        counters.parse(output)


@pytest.fixture
def ncu(tmp_path, monkeypatch):
    """Installs a stand-in for ncu, a shell script, on a machine that seems to have a GPU."""

    def install(script):
        path = tmp_path / "ncu"
        path.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(path) if name == "ncu" else None)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(counters, "describe_environment", lambda device: {"device": device})
    return install


def test_ncu_is_run_on_one_forward_and_backward_and_its_table_kept(ncu, tmp_path, capsys):
    (tmp_path / "output.csv").write_text(OUTPUT)
    ncu(f"cat {tmp_path}/output.csv")
    output = tmp_path / "new" / "counters.json"
    assert counters.main(["--tokens", "4096", "--ops", "selective_scan", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["tokens"] == 4096
    assert report["results"] == counters.parse(OUTPUT)
    assert "long scoreboard" in capsys.readouterr().out
    arguments = (tmp_path / "arguments").read_text()
    assert "--clock-control none --profile-from-start off --print-units base --csv --metrics gpu__time" in arguments
    assert "-m benchmarks.operators.counters --profiled --tokens 4096 --ops selective_scan" in arguments
    for name in (counters.ISSUE, "dram__throughput", "sm__warps_active", "pipe_xu", "mem_shared", "stalled_wait"):
        assert name in arguments


FAILURES = {
    "exit code": (
        "echo '==ERROR== ERR_NVGPUCTRPERM'; exit 3",
        "ncu failed with exit code 3:\n==ERROR== ERR_NVGPUCTRPERM",
    ),
    "stderr": ("echo lost >&2; exit 1", "exit code 1:\nlost"),
    "nothing": ("echo '==WARNING== No kernels were profiled.'", "no table of metrics:\n==WARNING== No kernels were"),
}


@pytest.mark.parametrize(("script", "message"), FAILURES.values(), ids=FAILURES)
def test_what_ncu_says_is_shown_where_it_fails(script, message, ncu, tmp_path, capsys):
    ncu(script)
    assert counters.main(["--output", str(tmp_path / "counters.json")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "counters.json").exists()


def test_a_missing_ncu_or_gpu_is_named(ncu, monkeypatch, capsys):
    ncu("exit 0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert counters.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert counters.main([]) == 1
    assert "ncu is not on PATH; it comes with NVIDIA's Nsight Compute" in capsys.readouterr().err


def test_the_profiled_process_runs_the_cases_that_were_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(counters, "run_once", seen.extend)
    assert counters.main(["--profiled", "--tokens", "64", "--channels", "8", "--dtype", "float16"]) == 0
    assert [(case.op, case.tokens, case.states, case.dtype) for case in seen] == [
        ("causal_conv1d", 64, None, torch.float16),
        ("selective_scan", 64, 16, torch.float16),
    ]
