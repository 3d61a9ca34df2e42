"""The chunked loss: equal to cross_entropy with its gradients, small in memory, explicit about what it cannot do."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operators.loss_memory import measure_in_subprocess
from packmamba.model import loss as loss_module
from packmamba.model.loss import linear_cross_entropy
from tests.support import assert_close, assert_identical

T, D, V = 37, 24, 101


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(V, (T,), generator=generator)
    labels[[0, 5, T - 1]] = -100
    return hidden, weight, labels


def chunks_of(tokens: int) -> int:
    """The budget in bytes that makes chunks of so many tokens."""
    return 4 * V * tokens


def whole(hidden: Tensor, weight: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
    return F.cross_entropy(hidden @ weight.T, labels, reduction=reduction)


@pytest.mark.parametrize("chunk", [1, 7, 36, 37, 1000])
@pytest.mark.parametrize(("dtype", "ratio"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=["fp32", "fp64"])
def test_loss_and_gradients_equal_cross_entropy(dtype, ratio, chunk):
    hidden, weight, labels = problem(dtype)
    expected = whole(hidden, weight, labels)
    actual = linear_cross_entropy(hidden, weight, labels, chunk_bytes=chunks_of(chunk))
    assert actual.dtype == dtype
    assert_close("loss", expected, actual, ratio)
    expected_grads = torch.autograd.grad(expected * 0.37, (hidden, weight))
    grads = torch.autograd.grad(actual * 0.37, (hidden, weight))
    assert_close("d_hidden", expected_grads[0], grads[0], ratio)
    assert_close("d_weight", expected_grads[1], grads[1], ratio)


def test_gradcheck_in_fp64():
    hidden, weight, labels = problem(torch.float64)
    labels = labels[:9]
    inputs = (hidden[:9].detach().requires_grad_(), weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, labels, chunk_bytes=chunks_of(4)), inputs, fast_mode=False
    )


def test_losses_without_reduction_equal_cross_entropy_and_are_zero_without_label():
    hidden, weight, labels = problem()
    with torch.no_grad():
        losses = linear_cross_entropy(hidden, weight, labels, reduction="none", chunk_bytes=chunks_of(5))
        assert_close("losses", whole(hidden, weight, labels, "none"), losses, 1e-6)
        assert losses.shape == (T,)
        assert losses.dtype == torch.float32
        assert bool((losses[labels == -100] == 0).all())
        assert_close("sum", losses.sum(), linear_cross_entropy(hidden, weight, labels), 1e-6)


def test_bf16_parameters_give_an_fp32_loss_and_gradients_summed_in_fp32():
    hidden, weight, labels = problem(torch.bfloat16)
    actual = linear_cross_entropy(hidden, weight, labels, chunk_bytes=chunks_of(1))
    assert actual.dtype == torch.float32
    exact = whole(hidden.float(), weight.float(), labels)
    assert_close("loss", exact, actual, 5e-3)
    expected = torch.autograd.grad(exact, (hidden, weight))
    grads = torch.autograd.grad(actual, (hidden, weight))
    assert grads[0].dtype == grads[1].dtype == torch.bfloat16
    assert_close("d_hidden", expected[0], grads[0], 1e-2)
    assert_close("d_weight", expected[1], grads[1], 1e-2)


def test_the_weights_gradient_is_summed_over_chunks_in_fp32():
    """1,000 equal tokens, one a chunk: a bf16 sum stops growing once an addend is half a unit in its last place."""
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(1000, dtype=torch.int64), chunk_bytes=1)
    (d_weight,) = torch.autograd.grad(loss, weight)
    assert d_weight.flatten().tolist() == [-500.0, 500.0]


def test_autocast_multiplies_in_bf16_and_keeps_the_wide_weights_gradient_wide():
    hidden, weight, labels = problem()
    exact = whole(hidden, weight, labels)
    expected = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        actual = linear_cross_entropy(hidden, weight, labels, chunk_bytes=chunks_of(3))
    assert actual.dtype == torch.float32
    assert_close("loss", exact, actual, 5e-3)
    assert not torch.equal(actual, exact), "autocast changed nothing"
    grads = torch.autograd.grad(actual, (hidden, weight))
    assert grads[0].dtype == grads[1].dtype == torch.float32
    assert_close("d_hidden", expected[0], grads[0], 1e-2)
    assert_close("d_weight", expected[1], grads[1], 1e-2)


def test_a_tied_weight_gets_the_sum_of_both_gradients():
    _, weight, labels = problem()
    ids = labels.roll(1).clamp_min(0)
    expected = torch.autograd.grad(whole(F.embedding(ids, weight), weight, labels), weight)[0]
    actual = torch.autograd.grad(linear_cross_entropy(F.embedding(ids, weight), weight, labels), weight)[0]
    assert_close("d_weight", expected, actual, 1e-6)


def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_do():
    hidden, weight, labels = problem()
    weight = weight.detach()
    expected = torch.autograd.grad(whole(hidden, weight, labels), hidden)[0]
    actual = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), hidden)[0]
    assert_close("d_hidden", expected, actual, 1e-6)


def test_backward_twice_gives_the_same_gradient():
    hidden, weight, labels = problem()
    loss = linear_cross_entropy(hidden, weight, labels)
    first = torch.autograd.grad(loss * 2, weight, retain_graph=True)[0]
    second = torch.autograd.grad(loss * 2, weight)[0]
    assert_identical("d_weight", first, second)


def test_only_ignored_labels_give_a_zero_loss_and_zero_gradients():
    hidden, weight, labels = problem()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    d_hidden, d_weight = torch.autograd.grad(loss, (hidden, weight))
    assert float(loss.detach()) == 0
    assert int(d_hidden.count_nonzero()) == int(d_weight.count_nonzero()) == 0


def test_large_logits_do_not_overflow():
    hidden, weight, labels = problem()
    scaled = (hidden * 1e4).detach().requires_grad_()
    assert_close("loss", whole(scaled, weight, labels), linear_cross_entropy(scaled, weight, labels), 1e-6)


@pytest.mark.slow
def test_the_peak_memory_is_a_fraction_of_the_logits():
    result = measure_in_subprocess("chunked", tokens=4096, vocab_size=50_280, d_model=64, dtype="float32")
    logits = 4096 * 50_280 * 4
    assert result["peak_bytes"] < 0.5 * logits, f"{result['peak_bytes'] / 1e6:.0f} MB"


def test_auto_runs_chunked_on_the_cpu_and_says_so_once(caplog):
    loss_module._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="packmamba.model.loss"):
        linear_cross_entropy(*problem())
        linear_cross_entropy(*problem())
    assert caplog.messages == ["loss backend auto on cpu: chunked"]


def test_liger_on_the_cpu_raises_instead_of_falling_back():
    with pytest.raises(RuntimeError, match="'liger' cannot run: it needs CUDA tensors, got cpu"):
        linear_cross_entropy(*problem(), backend="liger")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_liger_equals_chunked(dtype):
    pytest.importorskip("liger_kernel")
    hidden, weight, labels = (x.detach().cuda() for x in problem(dtype))
    hidden.requires_grad_(), weight.requires_grad_()
    ratio = 1e-5 if dtype == torch.float32 else 1e-2
    results = [linear_cross_entropy(hidden, weight, labels, backend=name) for name in ("chunked", "liger")]
    assert_close("loss", *results, ratio)
    chunked, liger = (torch.autograd.grad(result, (hidden, weight)) for result in results)
    assert_close("d_hidden", chunked[0], liger[0], ratio)
    assert_close("d_weight", chunked[1], liger[1], ratio)


def with_label(position: int, value: int) -> Tensor:
    labels = problem()[2]
    labels[position] = value
    return labels


HIDDEN, WEIGHT, LABELS = (x.detach() for x in problem())
BAD_INPUTS = {
    "widths-differ": (HIDDEN[:, 1:], WEIGHT, LABELS, {}, ValueError, r"\(37, 23\) and \(101, 24\)"),
    "batch-dimension": (HIDDEN[None], WEIGHT, LABELS[None], {}, ValueError, r"hidden must be \(T, d\)"),
    "too-few-labels": (HIDDEN, WEIGHT, LABELS[1:], {}, ValueError, r"\(37,\).*\(36,\)"),
    "int32-labels": (HIDDEN, WEIGHT, LABELS.int(), {}, TypeError, "int64, got torch.int32"),
    "dtypes-differ": (HIDDEN.bfloat16(), WEIGHT, LABELS, {}, TypeError, "bfloat16, torch.float32"),
    "label-too-large": (HIDDEN, WEIGHT, with_label(3, V), {}, ValueError, r"label 101 at position 3.*0\.\.100"),
    "label-negative": (HIDDEN, WEIGHT, with_label(4, -1), {}, ValueError, "label -1 at position 4"),
    "mean": (HIDDEN, WEIGHT, LABELS, {"reduction": "mean"}, ValueError, "'sum' or 'none', got 'mean'"),
    "unknown-backend": (HIDDEN, WEIGHT, LABELS, {"backend": "x"}, ValueError, "'x'; available: auto, chunked, liger"),
    "none-with-gradient": (
        HIDDEN.clone().requires_grad_(),
        WEIGHT,
        LABELS,
        {"reduction": "none"},
        RuntimeError,
        "no gradient; call it under torch.no_grad",
    ),
}


@pytest.mark.parametrize(
    ("hidden", "weight", "labels", "options", "error", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys()
)
def test_bad_input_raises_naming_it(hidden, weight, labels, options, error, message):
    with pytest.raises(error, match=message):
        linear_cross_entropy(hidden, weight, labels, **options)
