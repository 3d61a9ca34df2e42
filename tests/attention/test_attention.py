"""Attention inside documents: against its definition, without leaks, with errors that say what is wrong."""

from __future__ import annotations

import inspect
import logging
import sys
import types

import pytest
import torch
from torch import Tensor

from packmamba.attention import AttentionMask, choose, explain_backends, flash, sdpa, varlen, varlen_attention
from packmamba.attention.naive import varlen_attention_naive
from packmamba.packing import Packing
from tests.support import LENGTHS, assert_close, assert_identical

HEADS, HEAD_DIM = 4, 16
RATIO = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}
BACKENDS = pytest.mark.parametrize(
    ("backend", "device", "dtype"),
    [
        pytest.param("sdpa", "cpu", torch.float32, id="sdpa-cpu-fp32"),
        pytest.param("sdpa", "cpu", torch.bfloat16, id="sdpa-cpu-bf16"),
        pytest.param("sdpa", "cuda", torch.bfloat16, id="sdpa-cuda-bf16", marks=pytest.mark.gpu),
        pytest.param("varlen", "cuda", torch.bfloat16, id="varlen-cuda-bf16", marks=pytest.mark.gpu),
        pytest.param("flash", "cuda", torch.bfloat16, id="flash-cuda-bf16", marks=pytest.mark.gpu),
    ],
)


def attention_by_definition(q: Tensor, k: Tensor, v: Tensor, packing: Packing, sliding_window: int | None) -> Tensor:
    """Token t of a document: softmax of its scores against tokens t - window + 1 to t of the same document, times v."""
    mask = AttentionMask(sliding_window=sliding_window)
    return varlen_attention_naive(q, k, v, packing, packing, mask, q.shape[2] ** -0.5)


def random_qkv(num_tokens: int, kv_heads: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_tokens, HEADS, HEAD_DIM), (num_tokens, kv_heads, HEAD_DIM), (num_tokens, kv_heads, HEAD_DIM)]
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def run(qkv: list[Tensor], packing: Packing, **options) -> tuple[Tensor, ...]:
    """Output and gradients of q, k and v for one fixed output gradient."""
    qkv = [x.detach().requires_grad_() for x in qkv]
    out = varlen_attention(*qkv, packing, **options)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return (out.detach(), *torch.autograd.grad(out, qkv, dout))


def skip_where_it_cannot_run(backend: str, device: str, dtype: torch.dtype) -> None:
    if reason := explain_backends(device, dtype, HEAD_DIM)[backend]:
        pytest.skip(f"{backend}: {reason}")


@pytest.fixture
def deterministic(monkeypatch):
    """torch's CUDA attention adds with atomics in its backward unless told not to."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("sliding_window", [None, 1, 3, 100])
def test_sdpa_equals_the_definition_with_its_gradients(kv_heads, sliding_window):
    packing = Packing.from_lengths([1, 2, 7, 1, 5])
    qkv = random_qkv(packing.num_tokens, kv_heads, torch.float64)
    dout = torch.randn(packing.num_tokens, HEADS, HEAD_DIM, dtype=torch.float64)
    actual = varlen_attention(*qkv, packing, sliding_window=sliding_window, backend="sdpa")
    expected = attention_by_definition(*qkv, packing, sliding_window)
    assert_close("out", expected, actual, RATIO[torch.float64])
    grads = torch.autograd.grad(actual, qkv, dout)
    for name, reference, grad in zip("qkv", torch.autograd.grad(expected, qkv, dout), grads, strict=True):
        if name != "v" and sliding_window == 1:  # one visible key: its weight is 1 whatever the score
            assert float(grad.abs().max()) < 1e-12
        else:
            assert_close(f"d{name}", reference, grad, RATIO[torch.float64])


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("sliding_window", [None, 3], ids=["full", "window3"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@BACKENDS
def test_packed_equals_one_document_at_a_time(backend, device, dtype, kv_heads, sliding_window, lengths):
    skip_where_it_cannot_run(backend, device, dtype)
    packing = Packing.from_lengths(lengths).to(device)
    qkv = random_qkv(packing.num_tokens, kv_heads, dtype, device)
    options = {"sliding_window": sliding_window, "backend": backend}
    actual = varlen_attention(*qkv, packing, **options)
    for i, document in enumerate(zip(*map(packing.unpack, qkv), strict=True)):
        alone = varlen_attention(*document, Packing.from_lengths([lengths[i]]).to(device), **options)
        assert_close(f"document {i}", alone, packing.unpack(actual)[i], RATIO[dtype])


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("sliding_window", [None, 3], ids=["full", "window3"])
@BACKENDS
def test_changing_one_document_leaves_every_bit_of_the_others(backend, device, dtype, sliding_window):
    skip_where_it_cannot_run(backend, device, dtype)
    check_no_leak(Packing.from_lengths([5, 1, 130, 3]).to(device), dtype, sliding_window, backend)


def check_no_leak(packing: Packing, dtype: torch.dtype, sliding_window: int | None, backend: str) -> None:
    qkv = random_qkv(packing.num_tokens, 2, dtype, str(packing.device))
    before = run(qkv, packing, sliding_window=sliding_window, backend=backend)
    for i in range(packing.num_seqs):
        changed = [x.detach().clone() for x in qkv]
        for x in changed:
            packing.unpack(x)[i].mul_(-3).add_(1)
        after = run(changed, packing, sliding_window=sliding_window, backend=backend)
        for name, old, new in zip(("out", "dq", "dk", "dv"), before, after, strict=True):
            for j in range(packing.num_seqs):
                if j != i:
                    assert_identical(f"{name} of {j} after {i}", packing.unpack(old)[j], packing.unpack(new)[j])
        assert not torch.equal(packing.unpack(before[0])[i], packing.unpack(after[0])[i]), "nothing was changed"


def test_the_leak_check_catches_attention_over_the_whole_pack(monkeypatch):
    packing = Packing.from_lengths([5, 1, 130, 3])
    original = sdpa.attend

    def leaky(q, k, v, packing, key_packing, mask, scale):
        whole = Packing.from_lengths([packing.num_tokens])
        return original(q, k, v, whole, whole, mask, scale)

    monkeypatch.setattr(sdpa, "attend", leaky)
    with pytest.raises(AssertionError, match="elements differ"):
        check_no_leak(packing, torch.float32, None, "sdpa")


def test_a_nan_stays_in_its_document():
    packing = Packing.from_lengths([4, 3, 5])
    qkv = random_qkv(packing.num_tokens, 2, torch.float32)
    with torch.no_grad():
        qkv[1][5] = float("nan")
    for name, x in zip(("out", "dq", "dk", "dv"), run(qkv, packing), strict=True):
        first, second, third = packing.unpack(x)
        assert torch.isfinite(first).all(), name
        assert torch.isfinite(third).all(), name
        assert not torch.isfinite(second).all(), name


def test_a_scale_multiplies_the_scores():
    packing = Packing.from_lengths([6])
    q, k, v = random_qkv(6, 4, torch.float64)
    expected = varlen_attention(q * 0.5 * HEAD_DIM**0.5, k, v, packing)
    assert_close("out", expected, varlen_attention(q, k, v, packing, scale=0.5), 1e-12)


def test_auto_runs_sdpa_on_the_cpu_and_says_so_once(caplog):
    choose._log_choice.cache_clear()
    packing = Packing.from_lengths([3])
    qkv = random_qkv(3, 4, torch.float32)
    with caplog.at_level(logging.INFO, logger="packmamba.attention"):
        auto = varlen_attention(*qkv, packing)
        varlen_attention(*qkv, packing)
    assert len(caplog.messages) == 1
    assert "auto: sdpa" in caplog.messages[0]
    assert "CUDA" in caplog.messages[0]
    assert_identical("out", varlen_attention(*qkv, packing, backend="sdpa"), auto)


def test_explain_backends_names_every_backend_and_why_it_cannot_run():
    reasons = explain_backends("cpu")
    assert list(reasons) == ["varlen", "flash", "sdpa"]
    assert reasons["sdpa"] is None
    assert "CUDA" in str(reasons["varlen"])
    assert "fp16 or bf16" in str(explain_backends("cuda", torch.float32)["varlen"])
    assert "head_dim" in str(explain_backends("cuda", head_dim=264)["varlen"])


@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_a_named_backend_that_cannot_run_raises(backend):
    with pytest.raises(RuntimeError, match=f"'{backend}' cannot run: .*(CUDA tensors, got cpu|flash-attn package)"):
        varlen_attention(*random_qkv(3, 4, torch.bfloat16), Packing.from_lengths([3]), backend=backend)


def flash_by_definition(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size):
    """What flash attention's varlen functions promise: query t sees keys t - left to t + right of its document."""
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    left, right = window_size
    assert right == 0
    mask = AttentionMask(sliding_window=None if left == -1 else left + 1)
    return varlen_attention_naive(q, k, v, Packing.from_cu_seqlens(cu_q), Packing.from_cu_seqlens(cu_k), mask, scale)


def varlen_of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    return flash_by_definition(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


def varlen_since_torch_2_12(*args, enable_gqa=False, num_splits=None, **options):
    assert enable_gqa == (args[0].shape[1] != args[1].shape[1])
    assert num_splits == 1
    return flash_by_definition(*args, **options)


@pytest.mark.parametrize("sliding_window", [None, 1, 3, 100])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("varlen_attn", [varlen_of_torch_2_11, varlen_since_torch_2_12])
def test_varlen_asks_torch_for_the_same_attention(monkeypatch, varlen_attn, kv_heads, sliding_window):
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(varlen, "_PARAMETERS", inspect.signature(varlen_attn).parameters)
    packing = Packing.from_lengths([1, 2, 7, 5])
    qkv = random_qkv(packing.num_tokens, kv_heads, torch.float64)
    expected = varlen_attention(*qkv, packing, sliding_window=sliding_window, scale=0.3, backend="sdpa")
    assert_close(
        "out", expected, varlen.attend(*qkv, packing, packing, AttentionMask(sliding_window=sliding_window), 0.3), 1e-12
    )


def pretend_flash_attn(monkeypatch) -> None:
    def flash_attn_varlen_func(*args, softmax_scale, causal, window_size, deterministic):
        assert causal
        assert deterministic
        return flash_by_definition(*args, scale=softmax_scale, window_size=window_size)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func))


@pytest.mark.parametrize("sliding_window", [None, 1, 3, 100])
def test_flash_asks_flash_attn_for_the_same_attention(monkeypatch, sliding_window):
    pretend_flash_attn(monkeypatch)
    packing = Packing.from_lengths([1, 2, 7, 5])
    qkv = random_qkv(packing.num_tokens, 2, torch.float64)
    expected = varlen_attention(*qkv, packing, sliding_window=sliding_window, scale=0.3, backend="sdpa")
    actual = flash.attend(*qkv, packing, packing, AttentionMask(sliding_window=sliding_window), 0.3)
    assert_close("out", expected, actual, 1e-12)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


BAD_INPUTS = {
    "batch-dimension": (zeros(1, 3, 4, 8), zeros(1, 3, 4, 8), zeros(1, 3, 4, 8), {}, ValueError, "q must be"),
    "k-and-v-differ": (zeros(3, 4, 8), zeros(3, 4, 8), zeros(3, 2, 8), {}, ValueError, "k and v must have the same"),
    "too-few-tokens": (zeros(2, 4, 8), zeros(2, 4, 8), zeros(2, 4, 8), {}, ValueError, "T = 3 rows.*q \\(2, 4, 8\\)"),
    "head-dims-differ": (zeros(3, 4, 8), zeros(3, 4, 6), zeros(3, 4, 6), {}, ValueError, "same head dimension"),
    "heads-not-divisible": (zeros(3, 4, 8), zeros(3, 3, 8), zeros(3, 3, 8), {}, ValueError, "4 query heads.* 3 key"),
    "dtypes-differ": (zeros(3, 4, 8), zeros(3, 4, 8), zeros(3, 4, 8, dtype=torch.float64), {}, TypeError, "float64"),
    "integers": (*[zeros(3, 4, 8, dtype=torch.int64)] * 3, {}, TypeError, "floating-point"),
    "devices-differ": (*[torch.zeros(3, 4, 8, device="meta")] * 3, {}, ValueError, "packing.to"),
    "window-0": (*[zeros(3, 4, 8)] * 3, {"sliding_window": 0}, ValueError, "at least 1.*got 0"),
    "unknown-backend": (*[zeros(3, 4, 8)] * 3, {"backend": "xla"}, ValueError, "'xla'.*auto, varlen, flash, sdpa"),
}


@pytest.mark.parametrize(("q", "k", "v", "options", "error", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_raises_naming_it(q, k, v, options, error, message):
    with pytest.raises(error, match=message):
        varlen_attention(q, k, v, Packing.from_lengths([3]), **options)


KEY_LENGTHS = {"more-keys": ([1, 2, 7, 1, 5], [4, 2, 9, 1, 6]), "steps": ([1, 1, 1], [1, 30, 5])}


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("sliding_window", [None, 1, 3, 100])
@pytest.mark.parametrize(("queries", "keys"), KEY_LENGTHS.values(), ids=KEY_LENGTHS.keys())
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flash"])
def test_queries_are_the_last_tokens_of_their_documents_keys(
    monkeypatch, backend, queries, keys, sliding_window, kv_heads
):
    packing, key_packing = Packing.from_lengths(queries), Packing.from_lengths(keys)
    q, k, v = random_qkv(key_packing.num_tokens, kv_heads, torch.float64)
    mask = AttentionMask(sliding_window=sliding_window)
    whole = varlen_attention_naive(q, k, v, key_packing, key_packing, mask, 0.3)
    q, expected = (
        torch.cat([rows[-n:] for rows, n in zip(key_packing.unpack(x), queries, strict=True)]) for x in (q, whole)
    )
    if backend == "sdpa":
        actual = varlen_attention(q, k, v, packing, key_packing=key_packing, mask=mask, scale=0.3, backend="sdpa")
    else:
        monkeypatch.setattr(varlen, "varlen_attn", varlen_of_torch_2_11)
        monkeypatch.setattr(varlen, "_PARAMETERS", inspect.signature(varlen_of_torch_2_11).parameters)
        pretend_flash_attn(monkeypatch)
        actual = {"varlen": varlen, "flash": flash}[backend].attend(q, k, v, packing, key_packing, mask, 0.3)
    assert_close("out", expected, actual, 1e-12)


@pytest.mark.parametrize("sliding_window", [None, 1, 3])
def test_a_dense_mask_shows_a_token_itself_and_the_window_before_it(sliding_window):
    mask = AttentionMask(sliding_window=sliding_window)
    for length in (1, 2, 3, 4, 9):
        dense = mask.dense(length, length)
        window = sliding_window or length
        assert dense.tolist() == [[0 <= query - key < window for key in range(length)] for query in range(length)]
        assert int(dense.sum()) == mask.visible_pairs([length])[0]
        assert torch.equal(mask.dense(1, length), dense[-1:])


BAD_KEYS = {
    "other-documents": (Packing.from_lengths([3]), {}, "key_packing has 1 documents.* has 2"),
    "too-few-keys": (Packing.from_lengths([1, 2]), {}, "document 0 has 2 queries, but only 1 keys"),
    "elsewhere": (Packing.from_lengths([2, 1]).to("meta"), {}, "key_packing is on meta"),
    "rows": (Packing.from_lengths([2, 2]), {}, "k and v must have 4 rows"),
    "two-masks": (None, {"mask": AttentionMask(), "sliding_window": 3}, "mask or sliding_window, not both"),
}


@pytest.mark.parametrize(("key_packing", "options", "message"), BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_keys_that_do_not_fit_the_queries_raise(key_packing, options, message):
    with pytest.raises(ValueError, match=message):
        varlen_attention(*[zeros(3, 4, 8)] * 3, Packing.from_lengths([2, 1]), key_packing=key_packing, **options)
