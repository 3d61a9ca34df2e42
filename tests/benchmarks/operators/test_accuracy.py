"""The accuracy benchmark: its fp64 is the definition's, a wrong gradient shows, the kernels are what it measures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.operators import accuracy
from benchmarks.operators.accuracy import DTYPES, SHORT, STEPS, Case, make_inputs, measure, table
from benchmarks.operators.cases import naive, ours, outputs_and_gradients
from benchmarks.operators.exact import causal_conv1d_exact, selective_scan_exact
from benchmarks.readme_tables import markdown
from tests.bare_machine import run_on_a_bare_machine
from tests.interrupt import interrupt_third_call
from tests.support import assert_close

SCAN = Case("selective_scan", sum(SHORT), 20, 4, "short", torch.float32, "middle")
CONV = Case("causal_conv1d", sum(SHORT), 20, None, "short", torch.float32, None)
SMALL = ["--implementations", "definition", "reference", "--tokens", "20", "--channels", "5", "--states", "4"]


@pytest.mark.parametrize(
    "case", [CONV, *(replace(SCAN, steps=steps) for steps in STEPS)], ids=lambda case: case.steps or case.op
)
def test_fp64_is_the_definition_in_fp64(case):
    """Also where nearly everything decays within a step, where the operator in fp64 loses the gradient of A."""
    inputs = {name: x.detach().double() for name, x in make_inputs(case, torch.device("cpu")).items()}
    dout = torch.randn(case.tokens, case.channels, dtype=torch.float64)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    wanted = outputs_and_gradients(naive(case, case.packing()), leaves, dout)
    exact = selective_scan_exact if case.op == "selective_scan" else causal_conv1d_exact
    actual = exact(inputs, dout, case.packing().host_cu_seqlens)
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        assert_close(name, wanted[name], value, 1e-14)


@pytest.mark.parametrize("case", [CONV, SCAN], ids=lambda case: case.op)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounded_inputs_cost_nothing_and_rounded_outputs_what_rounding_costs(case, dtype):
    row = measure("reference", replace(case, dtype=DTYPES[dtype]))
    for name, error in row["errors"].items():
        rounding = row["rounding"][name]
        if name in ("dA", "dD", "ddelta_bias", "dweight", "dbias"):  # fp32, whatever the other inputs
            assert error["rms"] < 1e-4
            assert rounding["rms"] < 1e-7
        else:
            assert error["rms"] == pytest.approx(rounding["rms"], rel=0.1)
            assert rounding["rms"] > 1e-4
        assert error["max"] >= error["rms"]


def test_a_wrong_gradient_shows_as_an_error_of_its_size(monkeypatch):
    def wrong(case, packing):
        right = ours(case, packing)
        return lambda inputs: right(inputs | {"B": 1.01 * inputs["B"] - 0.01 * inputs["B"].detach()})

    monkeypatch.setattr(accuracy, "ours", wrong)
    errors = measure("reference", SCAN)["errors"]
    assert errors["dB"]["rms"] == pytest.approx(0.01, rel=1e-3)
    assert all(error["rms"] < 1e-4 for name, error in errors.items() if name != "dB")


def test_one_wrong_element_shows_in_the_largest_error():
    expected = {"out": torch.ones(100, dtype=torch.float64)}
    actual = {"out": torch.ones(100)}
    actual["out"][3] = 2
    assert accuracy.errors(expected, actual)["out"] == pytest.approx({"rms": 0.1, "max": 1.0})


def test_what_is_not_finite_is_never_hidden_by_a_worst_error():
    error = accuracy.errors({"out": torch.ones(2).double()}, {"out": torch.tensor([1, float("nan")])})["out"]
    assert error == {"rms": None, "max": None}
    assert accuracy.short(accuracy.worst([1.0, None, 2.0])) == "not finite"


def test_steps_that_leave_nothing_of_a_state_are_among_those_measured():
    decays = [measure("reference", replace(SCAN, steps=steps))["median_exponent"] for steps in STEPS]
    assert decays == sorted(decays)
    assert decays[0] < 0.1
    assert 30 < decays[-1] < 50


@pytest.mark.slow
def test_kernels_run_in_the_interpreter_in_a_process_of_their_own():
    """Triton's interpreter rounds to bf16 towards zero: an error that nothing else here has."""
    case = replace(SCAN, tokens=5, channels=4, distribution="giant", dtype=torch.bfloat16)
    (row,) = accuracy.run("interpreter", [case])
    assert row["implementation"] == "interpreter"
    assert row["errors"]["out"]["rms"] > 1.3 * row["rounding"]["out"]["rms"]
    reference = measure("reference", case)
    assert row["rounding"] == reference["rounding"]
    assert reference["errors"]["out"]["rms"] < 1.1 * reference["rounding"]["out"]["rms"]


def test_a_process_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(accuracy.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="the kernels' process in the interpreter exited with 1"):
        list(accuracy.run("interpreter", [SCAN]))


def test_every_operator_dtype_step_size_and_length_is_measured_and_in_the_table(tmp_path, capsys):
    output = tmp_path / "new" / "accuracy.json"
    assert accuracy.main([*SMALL, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    found = [tuple(row[key] for key in ("op", "dtype", "steps", "distribution")) for row in report["results"]]
    long_and_short = ("short", "giant")
    of_scan = [("selective_scan", d, s, n) for d in DTYPES for s in STEPS for n in long_and_short]
    of_conv = [("causal_conv1d", d, None, n) for d in DTYPES for n in long_and_short]
    of_definition = [("causal_conv1d", "fp32", None, "short"), *(("selective_scan", "fp32", s, "short") for s in STEPS)]
    assert sorted(found, key=str) == sorted([*of_scan, *of_conv, *of_definition], key=str)
    shown = capsys.readouterr().out
    assert shown.count("selective_scan, reference, bf16, 20 tokens, one document") == len(STEPS)
    assert len(table(report)) == 1 + (len(STEPS) + 1) * len(DTYPES) + 1 + len(DTYPES)
    assert "rounding alone" in markdown(table(report))


def test_the_table_shows_the_worst_of_all_implementations():
    row = measure("reference", SCAN)
    worse = json.loads(json.dumps(row)) | {"implementation": "interpreter"}
    worse["errors"]["dC"]["rms"] = 0.5
    long = json.loads(json.dumps(row)) | {"distribution": "giant"}
    header, line, _ = table({"results": [row, worse, long]})
    assert line[header.index("dC")] == f"5e-1 · {accuracy.short(row['errors']['dC']['rms'])}"


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    interrupt_third_call(monkeypatch, accuracy, "measure")
    assert accuracy.main([*SMALL, "--output", str(tmp_path / "accuracy.json")]) == 130
    assert len(json.loads((tmp_path / "accuracy.json").read_text())["results"]) == 2
    assert "interrupted after 2 measurements" in capsys.readouterr().out


def test_a_reference_that_would_run_kernels_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(accuracy, "INTERPRET", True)
    with pytest.raises(SystemExit, match="2"):
        accuracy.main(SMALL)
    assert "TRITON_INTERPRET=1 is set, with which every operator runs its kernels: unset it" in capsys.readouterr().err


@pytest.mark.slow
def test_it_needs_torch_triton_and_numpy_only(tmp_path):
    code = f"""
from benchmarks.operators import accuracy
sys.exit(accuracy.main({[*SMALL, "--ops", "causal_conv1d", "--dtypes", "fp32"]}))
"""
    done = run_on_a_bare_machine(code, tmp_path)
    assert done.returncode == 0, done.stderr
