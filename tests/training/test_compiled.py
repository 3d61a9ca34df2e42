"""`model.compile`: the same training, compiled once, in checkpoints of the same form."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from torch._dynamo.utils import counters

from packmamba import HybridLM, Packing
from packmamba.errors import CannotRunError
from packmamba.training import lit as lit_module
from packmamba.training.compiled import compile_layers
from packmamba.training.lit import LitHybridLM
from tests.model.guarantee import small_config
from tests.support import assert_close
from tests.training.test_lit import CONFIG, Data, batch_of, documents, fit, make_trainer

pytestmark = pytest.mark.slow

DATA = Data([batch_of(documents([9, 5 + i, 20], seed=i)) for i in range(8)])


@pytest.fixture(autouse=True)
def compiled_for_nothing_else() -> None:
    torch.compiler.reset()
    counters.clear()


def model_of(layer_pattern: str) -> HybridLM:
    torch.manual_seed(0)
    return HybridLM(small_config(layer_pattern))


def gradients(model: HybridLM, lengths: list[int]) -> dict[str, torch.Tensor]:
    packing = Packing.from_lengths(lengths)
    ids = torch.arange(packing.num_tokens) % model.config.vocab_size
    model.zero_grad()
    loss = model.loss(ids, packing, ids.roll(-1))
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_packs_of_any_length_share_one_graph_for_each_kind_of_layer() -> None:
    eager, compiled = model_of("1-*1-"), model_of("1-*1-")
    compile_layers(compiled, backend="aot_eager")
    # A size of 1 is special to torch.compile: a pack of one document has a graph of its own in a Mamba layer.
    for lengths, graphs in (([5, 1, 9], 2), ([64, 65], 2), ([30, 3, 3, 70, 1], 2), ([40], 3), ([70], 3)):
        expected, actual = gradients(eager, lengths), gradients(compiled, lengths)
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            assert_close(name, value, actual[name], 1e-5)
        assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_parameters_keep_their_names_and_a_copy_works() -> None:
    model = model_of("1-")
    names = list(model.state_dict())
    compile_layers(model, backend="aot_eager")
    assert list(model.state_dict()) == names
    gradients(model, [5, 4])
    twin = copy.deepcopy(model)
    for name, value in gradients(model, [5, 4]).items():
        assert_close(name, value, gradients(twin, [5, 4])[name], 1e-5)


def test_a_run_goes_on_compiled_and_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lit_module, "compile_layers", lambda model: compile_layers(model, backend="aot_eager"))
    weights: dict[tuple[bool, bool], Any] = {}
    for first, second in ((False, False), (True, False), (False, True)):
        lit, _ = fit(tmp_path, DATA, lit=LitHybridLM(CONFIG, compile=first, decay_steps=6), max_steps=3)
        lit.trainer.save_checkpoint(tmp_path / "a.ckpt")
        resumed = LitHybridLM(CONFIG, compile=second, decay_steps=6)
        make_trainer(tmp_path, max_steps=6).fit(resumed, DATA, ckpt_path=tmp_path / "a.ckpt")
        weights[first, second] = resumed.state_dict()
    for name, expected in weights[False, False].items():
        assert_close(name, expected, weights[True, False][name], 1e-5)
        assert_close(name, expected, weights[False, True][name], 1e-5)


def test_the_compiler_of_this_machine_makes_the_same_model(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    both = Data(DATA.train, DATA.train)
    lits = [LitHybridLM(CONFIG, compile=compiled) for compiled in (False, True)]
    rows = [fit(tmp_path, both, lit=lit, val_check_interval=2)[1].rows for lit in lits]
    for name in ("train/loss", "grad_norm"):
        assert [row[name] for row in rows[1]] == pytest.approx([row[name] for row in rows[0]], rel=1e-5)
    losses = [lit.document_losses.loss_sums for lit in lits if lit.document_losses is not None]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 4  # of a Mamba layer and an MLP, with gradients and without


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CannotRunError, match=r"model.compile needs a C\+\+ compiler"):
        compile_layers(model_of("1-"))
