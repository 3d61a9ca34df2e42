"""The small parts against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from packmamba_kernels.causal_conv1d.naive import causal_conv1d_naive
from packmamba_kernels.selective_scan.naive import selective_scan_naive

from packmamba import Packing
from packmamba.config import ComputeOptions, LayerConfig, ModelConfig
from packmamba.model.block import ResidualBlock
from packmamba.model.layers import RMSNorm
from packmamba.model.mixers import Mixer, build_mixer
from packmamba.model.mixers.rotary import apply_rotary, rotary_tables
from tests.model.guarantee import ATTENTION, small_config
from tests.support import assert_close, assert_identical

PACKING = Packing.from_lengths([3, 1, 70])


def mixer_of(config: ModelConfig) -> Mixer:
    """The mixer of a model's first layer."""
    return build_mixer(config.layers[0], config, ComputeOptions())


def test_rms_norm_divides_by_the_root_mean_square():
    x = torch.randn(5, 32, dtype=torch.float64)
    norm = RMSNorm(32, eps=1e-5).double()
    torch.nn.init.uniform_(norm.weight)
    assert_close("out", x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight, norm(x), 1e-14)


def test_rms_norm_keeps_fp32_statistics_of_a_bf16_input():
    x = (torch.randn(5, 2048) * 300).bfloat16()
    norm = RMSNorm(2048, eps=1e-5).bfloat16()
    out = norm(x)
    assert out.dtype == torch.bfloat16
    exact = F.rms_norm(x.double(), (2048,), eps=1e-5)
    assert_identical("out", exact.bfloat16(), out)


def test_rotary_rotates_each_pair_by_its_position_in_the_document():
    cos, sin = rotary_tables(PACKING.position_ids, 8, 10_000.0)
    assert cos.dtype == torch.float32
    x = torch.randn(PACKING.num_tokens, 2, 8, dtype=torch.float64)
    out = apply_rotary(x, cos, sin)
    assert out.dtype == torch.float64
    t, position = 10, 6  # token 10 is the seventh of its document
    for pair in range(4):
        angle = position * 10_000.0 ** (-2 * pair / 8)
        turned = torch.view_as_complex(torch.stack([x[t, :, pair], x[t, :, pair + 4]], -1))
        turned = turned * complex(math.cos(angle), math.sin(angle))
        assert_close("first", turned.real, out[t, :, pair], 1e-6)
        assert_close("second", turned.imag, out[t, :, pair + 4], 1e-6)
    first_tokens = PACKING.cu_seqlens[:-1].long()
    assert_identical("first tokens", x[first_tokens], out[first_tokens])


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(1, 1, 64, dtype=torch.float64), torch.randn(1, 1, 64, dtype=torch.float64)
    tables = rotary_tables(torch.tensor([2, 5, 40, 43]), 64, 10_000.0)
    q_turned, k_turned = (apply_rotary(x.expand(4, 1, 64), *tables).squeeze(1) for x in (q, k))
    assert_close("score", q_turned[1] @ k_turned[0], q_turned[3] @ k_turned[2], 1e-5)


def test_gated_mlp_is_swiglu():
    torch.manual_seed(0)
    mlp = mixer_of(small_config("-")).double()
    x = torch.randn(PACKING.num_tokens, 32, dtype=torch.float64)
    up, gate = mlp.fc1.weight.chunk(2)
    assert_close("out", ((x @ up.T) * F.silu(x @ gate.T)) @ mlp.fc2.weight.T, mlp(x, PACKING), 1e-12)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_mixer_rotates_queries_and_keys_and_looks_back_as_far_as_its_window(name):
    torch.manual_seed(0)
    mixer = mixer_of(small_config("*", name)).double()
    x = torch.randn(PACKING.num_tokens, 32, dtype=torch.float64)
    heads, kv_heads, _ = mixer.splits
    q, k, v = (x @ mixer.in_proj.weight.T).unflatten(1, (-1, 8)).split(mixer.splits, dim=1)
    tables = rotary_tables(PACKING.position_ids, 8, 10_000.0)
    q, k = apply_rotary(q, *tables), apply_rotary(k, *tables)
    k, v = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (k, v))
    t = torch.arange(PACKING.num_tokens)
    distance = t[:, None] - t
    visible = (distance >= 0) & (PACKING.seq_idx[:, None] == PACKING.seq_idx)
    visible &= distance < (ATTENTION[name].sliding_window or PACKING.num_tokens)
    scores = torch.einsum("thd,shd->hts", q, k) / 8**0.5
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    expected = torch.einsum("hts,shd->thd", weights, v).flatten(1) @ mixer.out_proj.weight.T
    assert_close("out", expected, mixer(x, PACKING), 1e-12)


def test_mamba1_mixer_is_the_paper_block_written_with_the_naive_operators():
    torch.manual_seed(0)
    mixer = mixer_of(small_config("1"))
    x = torch.randn(PACKING.num_tokens, 32)
    u, z = (x @ mixer.in_proj.weight.T).chunk(2, dim=1)
    conv = {"activation": "silu", "cu_seqlens": PACKING.cu_seqlens}
    u = causal_conv1d_naive(u, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, **conv)
    dt, B, C = (u @ mixer.x_proj.weight.T).split([2, 8, 8], dim=1)
    delta = F.softplus(dt @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    y = selective_scan_naive(u, delta, -mixer.A_log.exp(), B, C, mixer.D, z, cu_seqlens=PACKING.cu_seqlens)
    assert_close("out", y @ mixer.out_proj.weight.T, mixer(x, PACKING), 1e-5)


@pytest.mark.parametrize("symbol", ["1", "*", "-"])
def test_a_block_adds_its_mixers_output_to_a_stream_of_the_same_dtype(symbol):
    torch.manual_seed(0)
    config = small_config(symbol)
    block = ResidualBlock(config.layers[0], config, ComputeOptions()).bfloat16()
    x = torch.randn(PACKING.num_tokens, 32)
    out = block(x, PACKING)
    assert out.dtype == torch.float32
    assert_identical("out", x + block.mixer(block.norm(x), PACKING).float(), out)


def test_a_block_rejects_a_layer_without_a_mixer():
    class Mamba9Config(LayerConfig):
        pass

    with pytest.raises(ValueError, match="no mixer for a layer of class Mamba9Config; available: Mamba1Config, Att"):
        ResidualBlock(Mamba9Config(), small_config("1"), ComputeOptions())
