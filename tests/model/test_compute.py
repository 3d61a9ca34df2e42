"""What the backward computes again: the same numbers, for less memory."""

from __future__ import annotations

import pytest
import torch
from packmamba_kernels.selective_scan import reference

from packmamba import HybridLM, ModelConfig, Packing
from packmamba.compare.memory import bytes_kept
from packmamba.config import ComputeOptions, Mamba1Config
from packmamba.data.lengths import sample_lengths
from packmamba.model.mixers.mamba1 import Mamba1Mixer
from tests.model.guarantee import VOCAB, labels_of, small_config
from tests.support import assert_close, assert_identical

PACKING = Packing.from_lengths([5, 1, 130, 9])
MODES = ("none", "conv", "block")


def loss_and_gradients(model: HybridLM, autocast: bool = False) -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCAB, (PACKING.num_tokens,), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.loss(ids, PACKING, labels_of(ids, PACKING))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"loss": loss.detach()} | gradients


def model_of(recompute: str, layer_pattern: str = "1*-1", **overrides) -> HybridLM:
    torch.manual_seed(0)
    return HybridLM(small_config(layer_pattern, **overrides), ComputeOptions(recompute=recompute))


@pytest.mark.parametrize("recompute", ["conv", "block"])
@pytest.mark.parametrize(
    ("dtype", "autocast", "ratio"),
    [(torch.float32, False, 1e-6), (torch.bfloat16, False, 1e-2), (torch.float32, True, 1e-2)],
    ids=["fp32", "bf16", "autocast"],
)
def test_gradients_are_those_of_keeping_everything(recompute, dtype, autocast, ratio):
    wanted = loss_and_gradients(model_of("none").to(dtype), autocast)
    actual = loss_and_gradients(model_of(recompute).to(dtype), autocast)
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        assert value.dtype == wanted[name].dtype
        assert_close(name, wanted[name], value, ratio)
    assert_identical("loss", wanted["loss"], actual["loss"])


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_with_and_without_biases_are_those_of_keeping_everything(bias):
    mamba1 = Mamba1Config(d_state=8, conv_bias=not bias, proj_bias=bias)
    config = ModelConfig(layer_pattern="1", d_model=32, vocab_size=VOCAB, mamba1=mamba1)
    results = []
    for mode in MODES:
        torch.manual_seed(0)
        results.append(loss_and_gradients(HybridLM(config, ComputeOptions(recompute=mode))))
    for name, wanted in results[0].items():
        for actual in results[1:]:
            assert_close(name, wanted, actual[name], 1e-6)


def test_a_frozen_model_with_one_trained_weight_gets_its_gradient():
    wanted, actual = model_of("none"), model_of("conv")
    for model in (wanted, actual):
        model.requires_grad_(False)
        model.backbone.layers[0].mixer.dt_proj.weight.requires_grad_(True)
    wanted, actual = loss_and_gradients(wanted), loss_and_gradients(actual)
    assert len(actual) == 2
    for name, value in actual.items():
        assert_close(name, wanted[name], value, 1e-6)


def test_fp64_models_train():
    for mode in MODES:
        result = loss_and_gradients(model_of(mode).double())
        assert {value.dtype for value in result.values()} == {torch.float64}


@pytest.mark.parametrize("recompute", MODES)
def test_the_loss_compiles_in_one_graph(recompute):
    torch.compiler.reset()
    eager, model = loss_and_gradients(model_of(recompute, "1-")), model_of(recompute, "1-")
    model.loss = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    for name, value in loss_and_gradients(model).items():
        assert_close(name, eager[name], value, 1e-5)


def test_an_outer_checkpoint_keeps_nothing_of_the_mixer():
    """Whatever the mixer keeps for itself goes through autograd, so that offloading and checkpointing see it."""
    mixer = mamba1_mixer("conv")
    x = torch.randn(PACKING.num_tokens, 64, requires_grad=True)
    known = [x, *mixer.parameters()]
    kept = bytes_kept(lambda: torch.utils.checkpoint.checkpoint(mixer, x, PACKING, use_reentrant=False), known)
    assert kept <= 1024  # scalars


def mamba1_mixer(recompute: str) -> Mamba1Mixer:
    torch.manual_seed(0)
    config = ModelConfig(layer_pattern="1", d_model=64, vocab_size=8)
    return Mamba1Mixer(config.layers[0], config, ComputeOptions(recompute=recompute))


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])
def test_a_mamba_mixer_keeps_at_most_eight_bytes_for_each_token_and_channel(autocast):
    """In 16 bits, its input and the states at segment starts included; more where nothing is computed again."""
    packing = Packing.from_lengths(sample_lengths("lognormal", num_tokens=8192))
    kept = {}
    for mode in ("none", "conv"):
        mixer = mamba1_mixer(mode).to(torch.float32 if autocast else torch.bfloat16)
        x = torch.randn(packing.num_tokens, 64, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total = bytes_kept(lambda mixer=mixer, x=x: mixer(x, packing), known=mixer.parameters())
        kept[mode] = (total + x.nbytes) / (packing.num_tokens * 128)
    assert kept["conv"] <= 8
    assert kept["none"] > 10


def test_recomputed_blocks_keep_less_than_mixers_that_recompute():
    packing = Packing.from_lengths(sample_lengths("lognormal", num_tokens=4096))
    ids = torch.randint(VOCAB, (packing.num_tokens,))
    kept = {}
    for mode in MODES:
        model = model_of(mode, "11")
        kept[mode] = bytes_kept(lambda model=model: model.backbone(ids, packing), known=model.parameters())
    assert kept["block"] < 0.7 * kept["conv"]
    assert kept["conv"] < 0.8 * kept["none"]


@pytest.mark.parametrize("recompute", MODES)
def test_no_scan_is_computed_again(recompute, monkeypatch):
    """The most expensive part of a layer; its backward has its own way through the states."""
    scans = []
    forward = reference.forward
    monkeypatch.setattr(reference, "forward", lambda *args: (scans.append(args), forward(*args))[1])
    loss_and_gradients(model_of(recompute, "1-1"))
    assert len(scans) == 2


def test_an_unknown_way_to_recompute_is_refused():
    with pytest.raises(ValueError, match="unknown recompute 'all'; available: none, conv, block"):
        ComputeOptions(recompute="all")
