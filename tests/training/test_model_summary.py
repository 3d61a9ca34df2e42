"""The summary of a model counts what there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("lightning")

import torch

from packmamba.config import PRESETS, ModelConfig
from packmamba.model import HybridLM, training_flops
from packmamba.training.lit import LitHybridLM
from packmamba.training.model_summary import describe_model, describe_schedule, in_units, parts_of

SMALL = ModelConfig(
    layer_pattern="1w*-1",
    d_model=64,
    vocab_size=50,
    tie_embeddings=False,
    symbols={"w": {"kind": "attention", "sliding_window": 8}},
)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, tie_embeddings=True), PRESETS["hybrid-tiny"]])
def test_the_parts_together_are_all_parameters(config: ModelConfig) -> None:
    model = HybridLM(config)
    parts = parts_of(model)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    assert sum(part.layers or 0 for part in parts) == len(config.layers)


def test_parts_are_named_by_kind_of_layer_and_symbol() -> None:
    names = [part.name for part in parts_of(HybridLM(SMALL))]
    assert names == ["embedding", "mamba1", "attention w", "attention", "mlp", "last norm", "output head"]


def test_nothing_is_allocated_for_a_large_model() -> None:
    large = LitHybridLM(replace(PRESETS["mamba-2.8b"], d_model=16_384))
    assert "weights 433 GB" in "\n".join(describe_model(large, capacity=None, precision="32-true"))


def test_bytes_and_flops_are_those_of_training() -> None:
    lit = LitHybridLM(SMALL)
    total = sum(p.numel() for p in HybridLM(SMALL).parameters())
    text = "\n".join(describe_model(lit, capacity=64, precision="32-true"))
    assert f"{total:,}" in text
    assert f"weights {in_units(4 * total)}B, gradients {in_units(4 * total)}B, AdamW {in_units(8 * total)}B" in text
    assert f"{in_units(training_flops(SMALL, [64]) / 64)}FLOPs a token" in text
    halved = "\n".join(describe_model(lit, capacity=None, precision="bf16-true"))
    assert f"weights {in_units(2 * total)}B" in halved
    assert "FLOPs" not in halved
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_schedule_is_one_sentence() -> None:
    lit = LitHybridLM(SMALL, learning_rate=2e-3, warmup_steps=7)
    assert describe_schedule(lit, 1000) == (
        "AdamW, weight decay 0.1; the learning rate rises to 2.0e-03 in 7 steps, falls along half a cosine to 2.0e-04 "
        "at step 1,000"
    )
    assert "begins at 1.0e-03" in describe_schedule(LitHybridLM(SMALL, warmup_steps=0), None)
    assert "at step 30" in describe_schedule(LitHybridLM(SMALL, decay_steps=30), 1000)


def test_random_numbers_are_as_they_would_be_without_it() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    describe_model(LitHybridLM(SMALL), capacity=None, precision=None)
    assert torch.equal(torch.rand(3), expected)
