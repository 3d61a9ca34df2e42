"""Layer patterns, dimensions and presets."""

from __future__ import annotations

import json
import math

import pytest

from packmamba.config import PRESETS, AttentionConfig, Mamba1Config, MLPConfig, ModelConfig

SMALL = {"d_model": 128, "vocab_size": 10}


def kinds(config: ModelConfig) -> tuple[str, ...]:
    return tuple(layer.kind for layer in config.layers)


def test_depth_is_the_length_of_the_pattern() -> None:
    config = ModelConfig(layer_pattern="1-1-*-", **SMALL)
    assert kinds(config) == ("mamba1", "mlp", "mamba1", "mlp", "attention", "mlp")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_a_round_trip_through_json(name: str) -> None:
    config = ModelConfig.from_preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_have_the_published_widths_and_depths() -> None:
    sizes = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}
    for size, (d_model, depth) in sizes.items():
        pure, hybrid = PRESETS[f"mamba-{size}"], PRESETS[f"hybrid-{size}"]
        assert kinds(pure) == ("mamba1",) * depth
        assert (pure.d_model, pure.vocab_size, pure.layers[0].d_inner) == (d_model, 50_280, 2 * d_model)
        assert pure.layers[0].dt_rank == math.ceil(d_model / 16)
        assert len(kinds(hybrid)) == depth
        assert kinds(hybrid).count("attention") == depth // 8


def test_a_preset_takes_overrides() -> None:
    assert ModelConfig.from_preset("mamba-130m", vocab_size=258).vocab_size == 258


def test_sizes_left_open_are_derived() -> None:
    config = ModelConfig(layer_pattern="*-", d_model=512, vocab_size=10)
    attention, mlp = config.layers
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (8, 8, 64)
    assert mlp.d_ff == 1408
    grouped = ModelConfig(
        layer_pattern="*", d_model=512, vocab_size=10, attention=AttentionConfig(num_heads=4, num_kv_heads=2)
    )
    (attention,) = grouped.layers
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 2, 128)


BAD_CONFIGS = {
    "unknown symbol": (lambda: ModelConfig(layer_pattern="11x1", **SMALL), ValueError, "symbol 'x' at index 2"),
    "reserved symbol": (lambda: ModelConfig(layer_pattern="12", **SMALL), ValueError, "'2' at index 1 .* mamba2"),
    "empty pattern": (lambda: ModelConfig(layer_pattern="", **SMALL), ValueError, "layer_pattern is empty"),
    "unquoted pattern": (lambda: ModelConfig(layer_pattern=1111, **SMALL), TypeError, "1111 .*quote it"),
    "zero width": (lambda: ModelConfig(layer_pattern="1", d_model=0, vocab_size=1), ValueError, "d_model .*got 0"),
    "heads do not divide": (
        lambda: ModelConfig(layer_pattern="*", attention=AttentionConfig(num_heads=3), **SMALL),
        ValueError,
        r"d_model \(128\) is not divisible by attention.num_heads \(3\)",
    ),
    "kv heads do not divide": (
        lambda: ModelConfig(layer_pattern="*", attention=AttentionConfig(num_heads=4, num_kv_heads=3), **SMALL),
        ValueError,
        r"num_heads \(4\) is not divisible by attention.num_kv_heads \(3\)",
    ),
    "no heads fit": (lambda: ModelConfig(layer_pattern="*", d_model=100, vocab_size=1), ValueError, r"\(100\)"),
    "odd head": (
        lambda: ModelConfig(layer_pattern="*", d_model=6, vocab_size=1, attention=AttentionConfig(num_heads=2)),
        ValueError,
        "even",
    ),
    "wide convolution": (lambda: Mamba1Config(d_conv=9), ValueError, "between 2 and 8, got 9"),
    "step sizes swapped": (lambda: Mamba1Config(dt_min=0.2), ValueError, r"dt_min \(0.2\) is larger than dt_max"),
    "negative width": (lambda: MLPConfig(d_ff=-1), ValueError, "MLPConfig.d_ff must be positive, got -1"),
    "unknown preset": (lambda: ModelConfig.from_preset("mamba-3b"), ValueError, "'mamba-3b'; available: mamba-tiny"),
    "unknown field": (lambda: ModelConfig.from_dict({"depth": 3}), ValueError, "no field 'depth'"),
    "unknown nested field": (
        lambda: ModelConfig.from_dict({"layer_pattern": "1", **SMALL, "mamba1": {"width": 3}}),
        ValueError,
        "Mamba1Config has no field 'width'",
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_malformed_configuration_is_refused_with_its_value(name: str) -> None:
    build, error, message = BAD_CONFIGS[name]
    with pytest.raises(error, match=message):
        build()
