"""`packmamba compare`: what it runs, writes and refuses."""

from __future__ import annotations

import inspect
import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from packmamba import Packing, cli
from packmamba.cli import compare
from packmamba.compare import cases as compare_cases
from packmamba.compare import throughput
from packmamba.compare.breakdown import OPTIMIZER, REST, break_down
from packmamba.compare.modes import make_batches, parse_mode
from packmamba.compare.peers import why_missing
from packmamba.compare.tables import ESSENTIAL, as_text
from packmamba.compare.throughput import Comparison, Trainee
from packmamba.config import ComputeOptions, ModelConfig
from packmamba.errors import UsageError
from packmamba.model import HybridLM
from packmamba.model.mixers.mamba1 import Mamba1Mixer
from tests.bare_machine import run_on_a_bare_machine
from tests.option_table import refusals

PURE = ModelConfig(layer_pattern="11", d_model=16, vocab_size=32)
HYBRID = ModelConfig(layer_pattern="1*-1", d_model=64, vocab_size=32)
LENGTHS = (5, 40, 1, 12, 64)


def documents():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 32, length) for length in LENGTHS]


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(HYBRID.to_dict()))
    return str(path)


def run(tmp_path, *arguments):
    code = compare.main(["--device", "cpu", "--output", str(tmp_path / "out"), "--repeats", "1", *arguments])
    return code, json.loads((tmp_path / "out" / "compare.json").read_text())


class TestCommand:
    @pytest.mark.slow
    def test_a_sweep_measures_every_combination_and_draws_it(self, tmp_path, model_file, capsys):
        code, report = run(
            tmp_path, "--models", model_file, "--tokens", "300", "--lengths", "lognormal", "--mean-length", "20", "40",
            "--capacity", "128", "256", "--modes", "packed", "packed:sequential", "padded_sorted", "single",
            "--batch-sizes", "2", "--recompute", "none", "block", "--profile", "--trace", str(tmp_path / "trace.json"),
        )  # fmt: skip
        assert code == 0
        rows = report["results"]
        # 2 ways to recompute, 2 means; at the second capacity only what depends on it.
        assert len(rows) == 2 * 2 * (4 + 2)
        assert {row["status"] for row in rows} == {"ok"}
        assert all(row["tokens_per_second"] > 0 and row["activation_bytes_per_token"] > 0 for row in rows)
        assert all(row["forward_backward_tokens_per_second"] > row["tokens_per_second"] for row in rows)
        for mean in {row["mean_length"] for row in rows}:
            assert len({round(row["loss"], 4) for row in rows if row["mean_length"] == mean}) == 1
        assert {row["kind"] for row in report["breakdown"]} == {"mamba1", "attention", "mlp", REST, OPTIMIZER}
        for name in ("throughput.png", "memory.png", "capacity.png", "breakdown.png"):
            assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
        assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        printed = capsys.readouterr().out
        assert len(re.findall(r" single\b", printed)) == 4
        written = (tmp_path / "out" / "compare.md").read_text()
        assert "| mode |" in written
        assert written.count("`single`") == 4

    def test_missing_peers_are_listed(self, tmp_path, model_file, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "mamba_ssm", None)
        _, report = run(
            tmp_path, "--models", "mamba-tiny", "--tokens", "60", "--mean-length", "20", "--capacity", "128",
            "--modes", "packed", "mamba-ssm/dense:16", "--no-pictures",
        )  # fmt: skip
        assert [row["status"] for row in report["results"]] == ["ok", "missing"]
        assert "missing" in capsys.readouterr().out

    def test_an_interrupt_keeps_what_was_measured(self, tmp_path, model_file, monkeypatch, capsys):
        passes = []
        original = throughput._Run.pass_once

        def interrupted(self, trainee, *, counted):
            passes.append(str(self.mode))
            if len(passes) == 4:
                raise KeyboardInterrupt
            original(self, trainee, counted=counted)

        monkeypatch.setattr(throughput._Run, "pass_once", interrupted)
        code, report = run(
            tmp_path, "--models", model_file, "--tokens", "60", "--mean-length", "20", "--capacity", "128",
            "--modes", "packed", "single", "--no-pictures",
        )  # fmt: skip
        assert code == 130
        assert [row["status"] for row in report["results"]] == ["ok", "not measured"]
        assert "interrupted" in capsys.readouterr().out

    @pytest.mark.parametrize("suffix", [".json", ".csv", ".npy"])
    def test_lengths_come_from_files_too(self, tmp_path, suffix):
        path = tmp_path / f"lengths{suffix}"
        if suffix == ".npy":
            np.save(path, np.array([7, 7, 7, 30]))
        else:
            path.write_text('{"7": 3, "30": 1}' if suffix == ".json" else "length,count\n7,3\n30,1\n")
        lengths = compare_cases.load_lengths(str(path), 5000)
        assert set(lengths.tolist()) == {7, 30}
        assert 5000 <= lengths.sum() < 5030
        assert abs((lengths == 7).mean() - 0.75) < 0.08

    @pytest.mark.slow
    def test_lengths_are_those_of_a_configurations_documents(self, tmp_path):
        (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": "x" * n}) for n in (9, 9, 19)))
        config = tmp_path / "train.yaml"
        config.write_text(
            "model: {config: {layer_pattern: '1', d_model: 8, vocab_size: 258}}\n"
            "data: {source: {class_path: packmamba.data.sources.Files, init_args: "
            f"{{paths: ['{tmp_path}/texts.jsonl']}}}}, val_fraction: 0, cache_dir: '{tmp_path}'}}\n"
        )
        assert set(compare_cases.load_lengths(str(config), 2000).tolist()) == {10, 20}  # with the byte tokenizer's EOS
        config.write_text("data: {capacity: many}\n")
        with pytest.raises(ValueError, match="many"):
            compare_cases.load_lengths(str(config), 2000)

    def test_lengths_are_stretched_to_a_mean(self):
        lengths = compare_cases.load_lengths("lognormal", 500_000, mean=1300)
        assert lengths.mean() == pytest.approx(1300, rel=0.1)

    def test_every_strategy_is_compared_on_request(self):
        modes = compare_cases.expand_modes(["packed:all", "packed", "padded", "padded:3"], [2, 3])
        names = [str(mode) for mode in modes]
        assert {"packed", "packed:sequential", "packed:local_greedy"} <= set(names)
        assert names[-2:] == ["padded:2", "padded:3"]
        assert len(set(names)) == len(names)


def test_a_terminal_shows_the_columns_that_fit_it_and_remarks_below_their_row():
    lines = [
        ["model", "mode", "real tokens/s (slowest - fastest)", "padding", "steps", "packed is"],
        ["tiny", "`packed`", "900 (800 - 950)", "0.0%", "3", ""],
        ["tiny", "`single`", "300 (290 - 310)", "0.0%", "38", "3.00×"],
        ["tiny", "`mamba-ssm/padded:8`", "missing: no such module", "", "", ""],
    ]
    narrow, wide = as_text(lines, 48, ESSENTIAL), as_text(lines, 120, ESSENTIAL)
    assert max(map(len, narrow.splitlines())) <= 48
    assert "3.00×" in narrow
    assert "38" not in narrow
    assert "800 - 950" not in narrow
    assert "800 - 950" in wide
    assert narrow.splitlines()[-2:] == ["tiny   mamba-ssm/padded:8", "    missing: no such module"]


REFUSED = """
    mode | --modes sorted | unknown mode 'sorted'; available: packed, padded
    preset | --models mamba-3b | unknown model 'mamba-3b': neither a file nor a preset; did you mean 'mamba-
    distribution | --lengths zipf | unknown lengths 'zipf'; available: lognormal, uniform
    missing histogram | --lengths no.json | no histogram file 'no.json'
    missing lengths | --lengths no.npy | no.npy
    capacity | --capacity 64 | more than the capacity of 64
    zero | --tokens 0 | must be a whole number of at least 1, got '0'
    recompute | --recompute all | --recompute must be none, conv or block, got 'all'
    pattern | --layer-patterns 1x | unknown symbol 'x' at index 1
"""


@pytest.mark.parametrize(("arguments", "message"), refusals(REFUSED))
def test_bad_options_are_refused_by_name(arguments, message, capsys, tmp_path):
    assert cli.main(["compare", "--device", "cpu", "--output", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_it_needs_torch_triton_and_numpy_only(tmp_path):
    options = ["--models", "mamba-tiny", "--tokens", "60", "--mean-length", "20", "--capacity", "128", "--repeats", "1"]
    code = f"""
from packmamba.cli import compare
sys.exit(compare.main({[*options, "--device", "cpu", "--modes", "packed", "single", "--no-pictures"]}))
"""
    done = run_on_a_bare_machine(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\nsingle " in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_cuda_where_there_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device"):
        compare.main(["--device", "cuda"])


def test_a_file_without_a_model_is_refused(tmp_path):
    path = tmp_path / "trainer.yaml"
    path.write_text("trainer: {max_steps: 3}\n")
    with pytest.raises(ValueError, match=r"trainer.yaml describes no model"):
        compare_cases.load_model(str(path))
    for name in ("configs/quickstart.yaml", "quickstart"):
        assert compare_cases.load_model(name)[0].layer_pattern == "1-1-*-1-"


@pytest.mark.parametrize(("name", "content"), [("a.json", b"{"), ("a.yaml", b"a: ["), ("b.yaml", b"\xff\xfe\x00")])
def test_a_file_that_cannot_be_read_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"cannot read .*{name}"):
        compare_cases.load_model(str(tmp_path / name))


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Comparison, "run", None)
    (tmp_path / "file").write_text("")
    output = ["--output", str(tmp_path / "file" / "out"), "--no-pictures"]
    assert cli.main(["compare", "--device", "cpu", "--models", "mamba-tiny", "--tokens", "60", *output]) == 2
    assert "error: --output " in capsys.readouterr().err


@pytest.mark.slow
def test_to_run_out_of_memory_is_a_result(monkeypatch):
    original = Trainee.step

    def step(self, batch, clock=None):
        if batch.packing.num_tokens > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB.\nMore.")
        original(self, batch, clock)

    monkeypatch.setattr(Trainee, "step", step)
    results = Comparison(HYBRID, documents(), 64, modes=["padded:8", "packed"]).run(1)
    assert [result.status for result in results] == ["out of memory", "ok"]
    assert results[0].detail == "CUDA out of memory. Tried to allocate 8 GiB."


def test_a_model_that_does_not_fit_is_a_result(monkeypatch):
    def move(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(HybridLM, "to", move)
    (result,) = Comparison(HYBRID, documents(), 64, modes=["packed"]).run(1)
    assert (result.status, result.detail) == ("out of memory", "the model itself: CUDA out of memory.")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.slow
def test_narrow_precisions_agree_on_the_loss(precision):
    results = Comparison(HYBRID, documents(), 64, modes=["packed", "single"], precision=precision).run(1)
    assert all(result.tokens_per_second > 0 for result in results)


class TestPeers:
    @pytest.fixture
    def mamba_ssm(self, monkeypatch):
        """A stand-in for mamba-ssm: its mixer's signature, on rows; `leak` makes it compute something else."""

        class Mamba(nn.Module):
            leak = False

            def __new__(cls, d_model, d_state=16, d_conv=4, expand=2, dt_rank="auto", conv_bias=True, bias=False):
                config = ModelConfig(layer_pattern="1", d_model=d_model, vocab_size=1)
                mixer = Mamba1Mixer(config.layers[0], config, ComputeOptions())
                own = mixer.forward

                def forward(hidden_states, **boundaries):
                    rows, length, _ = hidden_states.shape
                    packing = Packing.from_lengths([rows * length] if cls.leak else [length] * rows)
                    if "cu_seqlens" in boundaries:
                        packing = Packing.from_cu_seqlens(boundaries["cu_seqlens"])
                    return own(hidden_states.flatten(0, 1), packing).view(hidden_states.shape)

                mixer.forward = forward
                return mixer

            def forward(self, hidden_states):
                raise NotImplementedError

        module = types.ModuleType("mamba_ssm.modules.mamba_simple")
        module.Mamba = Mamba
        monkeypatch.setitem(sys.modules, "mamba_ssm", types.ModuleType("mamba_ssm"))
        monkeypatch.setitem(sys.modules, "mamba_ssm.modules", types.ModuleType("mamba_ssm.modules"))
        monkeypatch.setitem(sys.modules, "mamba_ssm.modules.mamba_simple", module)
        return Mamba

    def test_a_peer_trains_on_the_same_documents_with_the_same_parameters(self, mamba_ssm):
        modes = ["packed", "mamba-ssm/padded:2", "mamba-ssm/single", "mamba-ssm/dense:16", "mamba-ssm/packed"]
        results = Comparison(PURE, documents(), 64, modes=modes).run(1)
        assert [result.status for result in results] == ["ok", "ok", "ok", "ok", "missing"]
        packed, padded, single, dense, _ = results
        assert packed.loss == pytest.approx(padded.loss, rel=1e-5)
        assert packed.loss == pytest.approx(single.loss, rel=1e-5)
        assert dense.loss != pytest.approx(packed.loss, rel=1e-5)

    def test_a_fork_that_takes_boundaries_is_packed(self, mamba_ssm, monkeypatch):
        def forward(self, hidden_states, cu_seqlens=None):
            raise NotImplementedError

        monkeypatch.setattr(mamba_ssm, "forward", forward)
        assert "cu_seqlens" in inspect.signature(mamba_ssm.forward).parameters
        results = Comparison(PURE, documents(), 64, modes=["packed", "mamba-ssm/packed"]).run(1)
        assert [result.status for result in results] == ["ok", "ok"]

    def test_a_peer_that_computes_something_else_is_not_timed(self, mamba_ssm):
        mamba_ssm.leak = True
        results = Comparison(PURE, documents(), 64, modes=["packed", "mamba-ssm/padded:2"]).run(1)
        assert results[1].status == "failed"
        assert "do not compute the same thing" in results[1].detail
        assert not results[1].seconds

    def test_peers_are_for_pure_models(self):
        assert "Mamba-1 layers only" in (why_missing(parse_mode("mamba-ssm/single"), HYBRID) or "")


@pytest.mark.parametrize("recompute", ["none", "conv", "block"])
def test_the_parts_of_a_step_add_up_to_what_was_timed(recompute, monkeypatch):
    stamps = []
    stamp = throughput.Clock.stamp
    monkeypatch.setattr(throughput.Clock, "stamp", lambda clock: (stamps.append(clock), stamp(clock)))
    torch.manual_seed(0)
    trainee = Trainee(HybridLM(HYBRID, ComputeOptions(recompute=recompute)), torch.device("cpu"), "32-true")
    (batch,) = make_batches(parse_mode("packed"), documents(), 256)
    shares = {share.kind: share for share in break_down(trainee, batch, repeats=1)}
    assert list(shares) == ["mamba1", "attention", "mlp", REST, OPTIMIZER]
    # Two steps; the beginning and end of 4 layers' forward and backward, and 4 edges of the step. A layer that is
    # computed again is part of the backward.
    assert len(stamps) == 2 * (4 * 4 + 4)
    assert shares["mamba1"].layers == 2
    for share in shares.values():
        assert share.backward_seconds > 0
    assert all(shares[kind].kept_bytes > 0 for kind in ("mamba1", "attention", "mlp"))
