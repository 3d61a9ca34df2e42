"""What weight decay may touch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from packmamba import HybridLM
from packmamba.config import Mamba1Config
from packmamba.model import no_decay_parameters, parameter_groups
from tests.model.guarantee import small_config

DECAYED = {
    "backbone.layers.0.mixer.in_proj.weight",
    "backbone.layers.0.mixer.conv1d.weight",
    "backbone.layers.0.mixer.x_proj.weight",
    "backbone.layers.0.mixer.dt_proj.weight",
    "backbone.layers.0.mixer.out_proj.weight",
    "backbone.layers.1.mixer.in_proj.weight",
    "backbone.layers.1.mixer.out_proj.weight",
    "backbone.layers.2.mixer.fc1.weight",
    "backbone.layers.2.mixer.fc2.weight",
}


def decayed_names(model: HybridLM, decay_embeddings: bool) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, _ = parameter_groups(model, weight_decay=0.1, decay_embeddings=decay_embeddings)
    return {names[parameter] for parameter in decayed["params"]}


def test_only_matrices_are_decayed():
    assert decayed_names(HybridLM(small_config("1*-")), decay_embeddings=False) == DECAYED


def test_biases_of_projections_are_not_decayed():
    config = dataclasses.replace(small_config("1"), mamba1=Mamba1Config(proj_bias=True))
    excluded = no_decay_parameters(HybridLM(config), decay_embeddings=True)
    assert "backbone.layers.0.mixer.in_proj.bias" in excluded


def test_a_tied_embedding_is_decayed_on_request_only():
    model = HybridLM(small_config("1*-"))
    assert decayed_names(model, decay_embeddings=True) == DECAYED | {"backbone.embedding.weight"}


def test_an_untied_head_is_a_projection_like_any_other():
    model = HybridLM(small_config("1*-", tie_embeddings=False))
    assert decayed_names(model, decay_embeddings=False) == DECAYED | {"lm_head.weight"}


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_every_parameter_is_in_exactly_one_group(decay_embeddings):
    model = HybridLM(small_config("1*-"))
    groups = parameter_groups(model, weight_decay=0.1, decay_embeddings=decay_embeddings)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    together = [parameter for group in groups for parameter in group["params"]]
    assert len(together) == len({id(parameter) for parameter in together})
    assert {id(parameter) for parameter in together} == {id(parameter) for parameter in model.parameters()}
    torch.optim.AdamW(groups, lr=1e-3)


def test_the_rule_survives_the_meta_device():
    with torch.device("meta"):
        model = HybridLM(small_config("1*-"))
    model.to_empty(device="cpu")
    assert decayed_names(model, decay_embeddings=False) == DECAYED


def test_frozen_parameters_are_left_out():
    model = HybridLM(small_config("1*-"))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.backbone.norm_f.weight.requires_grad_(True)
    (group,) = parameter_groups(model, weight_decay=0.1, decay_embeddings=False)
    assert group["weight_decay"] == 0.0
    assert len(group["params"]) == 1
