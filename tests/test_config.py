"""Layer patterns, dimensions and presets."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from packmamba_kernels.selective_scan.checks import STATES

from packmamba.config import (
    PRESETS,
    AttentionConfig,
    ComputeOptions,
    Mamba1Config,
    MLPConfig,
    ModelConfig,
    split_old_config,
)
from packmamba.errors import UsageError
from packmamba.layer_config import LAYER_KINDS, SCAN_STATES
from packmamba.model.mixers import MIXERS

SMALL = {"d_model": 128, "vocab_size": 10}


def kinds(config: ModelConfig) -> tuple[str, ...]:
    return tuple(layer.kind for layer in config.layers)


def test_equal_configurations_have_one_hash() -> None:
    symbols = {"w": {"kind": "attention", "sliding_window": 8}}
    first, second = (ModelConfig(layer_pattern="1w", d_model=64, vocab_size=9, symbols=symbols) for _ in range(2))
    assert {first: "found"}[second] == "found"


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
    "negative width": (lambda: MLPConfig(d_ff=-1), ValueError, "mlp.d_ff must be positive, got -1"),
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


class TestSymbols:
    def test_an_added_symbol_takes_what_it_does_not_name_from_its_kind(self) -> None:
        window = {"kind": "attention", "sliding_window": 1024}
        attention = AttentionConfig(num_heads=4, num_kv_heads=2)
        config = ModelConfig(layer_pattern="1w*", attention=attention, symbols={"w": window}, **SMALL)
        assert kinds(config) == ("mamba1", "attention", "attention")
        assert config.layer_names == ("mamba1", "attention w", "attention")
        resolved = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
        assert config.layers[1] == AttentionConfig(sliding_window=1024, **resolved)
        assert config.layers[2] == AttentionConfig(**resolved)

    def test_a_symbol_may_be_a_layer_configuration(self) -> None:
        config = ModelConfig(layer_pattern="1b", symbols={"b": Mamba1Config(d_state=64, d_inner=48)}, **SMALL)
        small, big = config.layers
        assert (small.d_state, small.d_inner, small.dt_rank) == (16, 256, 8)
        assert (big.d_state, big.d_inner, big.dt_rank) == (64, 48, 8)

    @pytest.mark.parametrize(
        "symbols", [{"b": Mamba1Config(d_state=64)}, {"w": {"kind": "attention", "sliding_window": 8}}, {}]
    )
    def test_symbols_survive_json_and_a_checkpoint(self, symbols, tmp_path: Path) -> None:
        config = ModelConfig(layer_pattern="1" + "".join(symbols), symbols=symbols, **SMALL)
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        torch.save(config.to_dict(), tmp_path / "config.pt")
        stored = ModelConfig.from_dict(torch.load(tmp_path / "config.pt", weights_only=True))
        assert (stored, stored.layers) == (config, config.layers)

    def test_an_unknown_symbol_names_the_added_ones_too(self) -> None:
        with pytest.raises(UsageError, match=r"'x' at index 1; available: .*'-' \(mlp\), 'w' \(attention\)$"):
            ModelConfig(layer_pattern="wx", symbols={"w": {"kind": "attention"}}, **SMALL)

    BAD: ClassVar = {
        "built in": ({"*": {"kind": "mlp"}}, r"'\*' stands for attention already"),
        "reserved": ({"2": {"kind": "mlp"}}, "'2' stands for mamba2 already"),
        "two characters": ({"ab": {"kind": "mlp"}}, "'ab' is not one character"),
        "no character": ({"": {"kind": "mlp"}}, "'' is not one character"),
        "a number": ({4: {"kind": "mlp"}}, "4 is not one character"),
        "unknown kind": ({"w": {"kind": "conv"}}, "symbols.w: unknown kind 'conv'; available: mamba1, attention, mlp"),
        "no kind": ({"w": {"sliding_window": 3}}, "symbols.w: unknown kind None"),
        "unknown field": ({"w": {"kind": "mlp", "width": 3}}, "symbols.w: MLPConfig has no field 'width'; its fields"),
        "bad value": ({"w": {"kind": "mlp", "d_ff": 0}}, "symbols.w: mlp.d_ff must be positive, got 0"),
        "not a layer": ({"w": 1024}, "a symbol stands for a dict .* got 1024"),
        "not a dict": (["w"], r"symbols must be a dict .* got \['w'\]"),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_symbol_is_refused_with_its_value(self, name: str) -> None:
        symbols, message = self.BAD[name]
        with pytest.raises(UsageError, match=message):
            ModelConfig(layer_pattern="1", symbols=symbols, **SMALL)

    def test_sizes_that_do_not_fit_name_the_symbol(self) -> None:
        symbols = {"w": {"kind": "attention", "num_heads": 3}}
        with pytest.raises(UsageError, match=r"symbols.w: d_model \(128\) is not divisible"):
            ModelConfig(layer_pattern="1w", symbols=symbols, **SMALL)
        ModelConfig(layer_pattern="1", symbols=symbols, **SMALL)  # a symbol that is not used is not resolved


def test_resolving_twice_changes_nothing() -> None:
    for layer in ModelConfig(layer_pattern="1*-", **SMALL).layers:
        assert None not in layer.sizes(*(f.name for f in fields(layer) if f.name != "sliding_window"))
        assert layer.resolve(SMALL["d_model"]) == layer


def test_a_size_that_is_not_resolved_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Mamba1Config.dt_rank is null: call resolve\(d_model\)"):
        Mamba1Config(d_inner=3).sizes("d_inner", "dt_rank")


def test_state_sizes_are_those_the_scan_has_kernels_for() -> None:
    assert SCAN_STATES == STATES
    with pytest.raises(UsageError, match="d_state must be one of 4, 8, 16, 32, 64, 128, got 12"):
        Mamba1Config(d_state=12)


def test_every_kind_has_a_field_a_symbol_and_a_mixer() -> None:
    for kind, layer in LAYER_KINDS.items():
        config = ModelConfig(layer_pattern=layer.symbol, **SMALL)
        assert isinstance(config.layers[0], layer)
        assert type(getattr(config, kind)) is layer
        assert layer in MIXERS
    assert len({layer.symbol for layer in LAYER_KINDS.values()}) == len(LAYER_KINDS)


def test_options_of_how_to_compute_survive_a_round_trip_and_are_checked() -> None:
    options = ComputeOptions(recompute="block", attention_backend="sdpa")
    assert ComputeOptions.from_dict(options.to_dict()) == options
    with pytest.raises(UsageError, match="unknown attention_backend 'xla'; available: auto, varlen, flash, sdpa"):
        ComputeOptions(attention_backend="xla")
    with pytest.raises(UsageError, match="ComputeOptions has no field 'compile'"):
        ComputeOptions.from_dict({"compile": True})


def test_fields_that_moved_to_the_options_are_left_out_of_old_dicts() -> None:
    old = {"layer_pattern": "1*", **SMALL, "recompute": "block", "attention": {"num_heads": 2, "backend": "sdpa"}}
    assert ModelConfig.from_dict(old) == ModelConfig(
        layer_pattern="1*", attention=AttentionConfig(num_heads=2), **SMALL
    )
    model, compute = split_old_config(old)
    assert compute == {"recompute": "block", "attention_backend": "sdpa"}
    assert model["attention"] == {"num_heads": 2}
    assert old["attention"] == {"num_heads": 2, "backend": "sdpa"}  # what was given stays as it is
