"""The FLOP formula against torch's counter and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from packmamba import HybridLM, ModelConfig, Packing
from packmamba.attention import AttentionMask
from packmamba.config import AttentionConfig
from packmamba.layer_config import LayerConfig
from packmamba.model import attention_costs, forward_flops, training_flops
from packmamba.visible_pairs import visible_pairs
from tests.model.guarantee import small_config


@pytest.mark.parametrize("layer_pattern", ["*", "-", "*-*"])
def test_products_equal_those_torch_counts(layer_pattern):
    config = small_config(layer_pattern)
    lengths = [1, 1, 1]  # torch counts whole squares of attention scores: the same for documents of one token
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        HybridLM(config)(torch.zeros(3, dtype=torch.int64), Packing.from_lengths(lengths))
    assert forward_flops(config, lengths) == counter.get_total_flops()


def test_a_mamba_layer_is_its_projections_convolution_and_scan():
    config = small_config("1")  # d_model 32, E 64, N 8, W 4, R 2
    projections = 2 * (32 * 128 + 64 * (2 + 8 + 8) + 2 * 64 + 64 * 32)
    expected = projections + 2 * 64 * 4 + 64 * (7 * 8 + 4)
    assert config.layers[0].flops(32, np.array([1])) == expected
    assert config.layers[0].flops(32, np.array([3, 4])) == 7 * expected
    assert config.mamba1.flops(32, np.array([1])) == expected  # nulls are derived there too


@pytest.mark.parametrize("window", [None, 1, 3, 4, 100])
def test_visible_pairs_equal_those_counted_one_by_one(window):
    documents = np.array([1, 2, 3, 4, 9])
    expected = sum(min(t + 1, window or t + 1) for length in documents for t in range(length))
    assert visible_pairs(documents, window).sum() == expected
    assert AttentionMask(sliding_window=window).visible_pairs(documents).sum() == expected


def test_attention_costs_by_documents_not_by_the_pack():
    config = ModelConfig(layer_pattern="*", d_model=64, vocab_size=10)
    whole, halves = forward_flops(config, [2048]), forward_flops(config, [1024, 1024])
    assert whole - halves == 4 * 64 * 1024**2
    windowed = ModelConfig(layer_pattern="*", d_model=64, vocab_size=10, attention=AttentionConfig(sliding_window=16))
    assert forward_flops(windowed, [2048]) < halves


def test_a_packing_is_counted_by_its_lengths():
    config = small_config("1*-")
    assert forward_flops(config, Packing.from_lengths([5, 1, 9])) == forward_flops(config, [5, 1, 9])
    assert training_flops(config, [5, 1, 9]) == 3 * forward_flops(config, [5, 1, 9])


def test_mamba_130m_costs_about_two_flops_a_parameter_and_token():
    config = ModelConfig.from_preset("mamba-130m")
    assert forward_flops(config, [1024]) / 1024 == pytest.approx(2 * 129_135_360, rel=0.05)


def test_a_kind_of_layer_has_to_say_what_it_costs():
    with pytest.raises(NotImplementedError):
        LayerConfig().flops(32, np.array([1]))


@pytest.mark.parametrize("window", [None, 7])
def test_the_cost_of_attention_says_how_flops_grow_with_a_documents_length(window):
    config = ModelConfig(
        layer_pattern="1*-*", d_model=64, vocab_size=100, attention=AttentionConfig(sliding_window=window)
    )
    (found,) = attention_costs(config)
    cost = found.cost
    assert found.window == window
    token = forward_flops(config, [1]) / (1 + cost)
    for length in (1, 5, 300):
        pairs = int(visible_pairs(np.array([length]), window).sum())
        assert forward_flops(config, [length]) == pytest.approx(token * (length + cost * pairs))


def test_a_model_without_attention_has_no_cost_of_attention():
    assert attention_costs(small_config("1-")) == ()


def test_each_window_of_a_model_has_a_cost_of_its_own():
    config = small_config("1w*-**")
    costs = {cost.window: cost.cost for cost in attention_costs(config)}
    assert list(costs) == [4, None]
    assert costs[None] == pytest.approx(3 * costs[4])
    token = forward_flops(config, [1]) / (1 + sum(costs.values()))
    for length in (1, 5, 300):
        pairs = sum(cost * int(visible_pairs(np.array([length]), window).sum()) for window, cost in costs.items())
        assert forward_flops(config, [length]) == pytest.approx(token * (length + pairs))
