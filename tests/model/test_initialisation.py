"""Initial values, and that no order of re-initialisation, from the meta device or not, gets them wrong."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from packmamba import HybridLM, ModelConfig, Packing
from packmamba.config import Mamba1Config

CONFIG = ModelConfig(layer_pattern="1*-1", d_model=256, vocab_size=997)


def check_initialised(model: HybridLM) -> None:
    """Every parameter of a model of CONFIG follows its initial distribution."""
    assert model.config.d_model == 256
    depth_scale = len(model.config.layer_pattern) ** -0.5
    for name, parameter in model.state_dict().items():
        assert torch.isfinite(parameter).all(), name
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf == "A_log":
            expected = torch.arange(1.0, 17.0).log().expand(512, 16)
            torch.testing.assert_close(parameter, expected, rtol=0, atol=0)
            assert parameter.dtype == torch.float32
        elif leaf == "D" or ".norm" in name:
            assert bool((parameter == 1).all()), name
        elif name.endswith("dt_proj.bias"):
            step = F.softplus(parameter)
            assert 0.9999e-3 <= float(step.min()) < 2e-3, name
            assert 0.5e-1 < float(step.max()) <= 1.0001e-1, name
            # log-uniform: the logarithm's mean is the middle, its deviation the range over √12
            low, high = math.log(1e-3), math.log(1e-1)
            assert float(step.log().mean()) == pytest.approx((low + high) / 2, abs=0.2), name
            assert float(step.log().std()) == pytest.approx((high - low) / 12**0.5, rel=0.1), name
        elif name.endswith("dt_proj.weight"):
            check_uniform(parameter, module.in_features**-0.5, name)
        elif name == "lm_head.weight" and model.config.tie_embeddings:
            assert parameter.data_ptr() == model.backbone.embedding.weight.data_ptr()
        elif name == "backbone.embedding.weight":
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.02)
        elif name.endswith(("out_proj.weight", "fc2.weight")):
            check_uniform(parameter, parameter.shape[1] ** -0.5 * depth_scale, name)
        elif "conv1d" in name:
            check_uniform(parameter, 4**-0.5, name)
        else:
            check_uniform(parameter, parameter.shape[1] ** -0.5, name)


def check_uniform(parameter: torch.Tensor, bound: float, name: str) -> None:
    assert 0.97 * bound < float(parameter.abs().max()) <= bound * 1.000001, name
    assert float(parameter.std()) == pytest.approx(bound / 3**0.5, rel=0.06), name


def poison(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
class TestEveryParameterFollowsItsDistribution:
    @pytest.fixture
    def config(self, tied):
        torch.manual_seed(0)
        return dataclasses.replace(CONFIG, tie_embeddings=tied)

    def test_after_construction(self, config):
        check_initialised(HybridLM(config))

    def test_after_reset_parameters(self, config):
        model = HybridLM(config)
        poison(model)
        model.reset_parameters()
        check_initialised(model)

    def test_from_the_meta_device(self, config):
        with torch.device("meta"):
            model = HybridLM(config)
        model.to_empty(device="cpu")
        poison(model)
        model.reset_parameters()
        check_initialised(model)
        assert (model.lm_head.weight is model.backbone.embedding.weight) == config.tie_embeddings

    @pytest.mark.parametrize("order", [1, -1], ids=["parents-first", "children-first"])
    def test_after_resetting_every_module_in_any_order(self, config, order):
        model = HybridLM(config)
        poison(model)
        for module in list(model.modules())[::order]:
            if hasattr(module, "reset_parameters") and module is not model:
                module.reset_parameters()
        check_initialised(model)


@pytest.mark.parametrize(
    "owner", ["layers.0.mixer.dt_proj", "layers.1.mixer.out_proj"], ids=["step-size-bias", "not-scaled-with-depth"]
)
def test_the_check_notices_a_linear_layers_default(owner):
    torch.manual_seed(0)
    model = HybridLM(CONFIG)
    nn.Linear.reset_parameters(model.get_submodule(f"backbone.{owner}"))
    with pytest.raises(AssertionError, match=owner.replace(".", r"\.") + (r"\.bias" if "dt_proj" in owner else "")):
        check_initialised(model)


def test_step_sizes_are_clamped_to_the_floor():
    config = ModelConfig(layer_pattern="1", d_model=32, vocab_size=8, mamba1=Mamba1Config(dt_min=1e-6, dt_max=2e-4))
    step = F.softplus(HybridLM(config).get_submodule("backbone.layers.0.mixer.dt_proj").bias.detach().double())
    assert float(step.min()) == pytest.approx(1e-4, rel=1e-3)


def test_projection_biases_start_at_zero():
    config = ModelConfig(layer_pattern="1", d_model=32, vocab_size=8, mamba1=Mamba1Config(proj_bias=True))
    mixer = HybridLM(config).get_submodule("backbone.layers.0.mixer")
    assert int(mixer.in_proj.bias.count_nonzero()) == int(mixer.out_proj.bias.count_nonzero()) == 0


MOVES = {
    "deepcopy": copy.deepcopy,
    "bfloat16": lambda model: model.bfloat16(),
    "to-meta": lambda model: model.to("meta"),
    "to-empty": lambda model: model.to_empty(device="cpu"),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_a_tied_head_stays_tied(move):
    model = move(HybridLM(CONFIG))
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert len(list(model.parameters())) == len(list(HybridLM(CONFIG).parameters()))


def test_the_initial_loss_is_that_of_guessing():
    torch.manual_seed(0)
    packing = Packing.from_lengths([40, 24])
    ids = torch.randint(997, (64,))
    loss = HybridLM(CONFIG).loss(ids, packing, torch.randint(997, (64,))).detach() / 64
    assert float(loss) == pytest.approx(math.log(997), rel=0.03)
