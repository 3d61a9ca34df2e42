"""The one guarantee, for every mixer and for whole models, each check with a leak that makes it fail."""

from __future__ import annotations

import pytest
import torch

from packmamba import HybridLM, Packing
from packmamba.attention import explain_backends
from packmamba.model import hybrid_lm
from packmamba.model.mixers import attention as attention_mixer
from packmamba.model.mixers import mamba1
from packmamba.model.mixers.mlp import GatedMLP
from tests.model.guarantee import (
    MIXERS,
    MODEL_PATTERN,
    RATIO,
    SYMBOLS_PATTERN,
    VOCAB,
    check_no_leak,
    check_packed_equals_separate,
    check_permutation,
    mixer_case,
    model_case,
    recompute_of,
    run_model,
    small_config,
)
from tests.support import LENGTHS, assert_identical

DTYPES = pytest.mark.parametrize("dtype", RATIO, ids=["fp32", "bf16"])
PACKS = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
SEVERAL = [5, 1, 30, 3, 4, 66]

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture(autouse=True)
def deterministic(request, monkeypatch):
    """torch's CUDA attention adds with atomics in its backward unless told not to."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(request.node.get_closest_marker("gpu") is not None)
    yield
    torch.use_deterministic_algorithms(False)


@DEVICES
@PACKS
@DTYPES
@pytest.mark.parametrize("mixer", MIXERS)
class TestMixer:
    def test_changing_a_document_leaves_every_bit_of_the_others(self, mixer, dtype, lengths, device):
        packing = Packing.from_lengths(lengths).to(device)
        check_no_leak(*mixer_case(mixer, packing, dtype, device), packing)

    def test_packed_equals_one_document_at_a_time(self, mixer, dtype, lengths, device):
        packing = Packing.from_lengths(lengths).to(device)
        check_packed_equals_separate(*mixer_case(mixer, packing, dtype, device), packing, RATIO[dtype])

    def test_permuting_documents_permutes_outputs(self, mixer, dtype, lengths, device):
        packing = Packing.from_lengths(lengths).to(device)
        check_permutation(*mixer_case(mixer, packing, dtype, device), packing, RATIO[dtype])


@DEVICES
@PACKS
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)],
    ids=["fp32", "bf16", "autocast"],
)
class TestModel:
    def test_changing_a_document_leaves_every_bit_of_the_others(self, dtype, autocast, lengths, device):
        packing = Packing.from_lengths(lengths).to(device)
        check_no_leak(*model_case(MODEL_PATTERN, packing, dtype, device, autocast), packing)

    def test_packed_equals_one_document_at_a_time(self, dtype, autocast, lengths, device):
        packing = Packing.from_lengths(lengths).to(device)
        case = model_case(MODEL_PATTERN, packing, dtype, device, autocast)
        check_packed_equals_separate(*case, packing, RATIO[dtype])

    def test_permuting_documents_permutes_outputs(self, dtype, autocast, lengths, device):
        packing = Packing.from_lengths(lengths).to(device)
        check_permutation(*model_case(MODEL_PATTERN, packing, dtype, device, autocast), packing, RATIO[dtype])


@DEVICES
@DTYPES
def test_models_with_added_symbols_keep_their_documents_apart(dtype, device):
    packing = Packing.from_lengths(SEVERAL).to(device)
    case = model_case(SYMBOLS_PATTERN, packing, dtype, device)
    check_no_leak(*case, packing)
    check_packed_equals_separate(*case, packing, RATIO[dtype])
    check_permutation(*case, packing, RATIO[dtype])


def forget_documents(op):
    """The op with its document boundaries taken away: one sequence of T tokens."""

    def leaky(*args, cu_seqlens, schedule, **options):
        return op(*args, **options)

    return leaky


def forget_the_packing(op):
    """The same for the function that computes again in its backward."""

    def leaky(xz, *args):
        return op(xz, *args[:-1], Packing.from_lengths([xz.shape[0]]))

    return leaky


def attend_to_the_whole_pack(op):
    def leaky(q, k, v, packing, **options):
        return op(q, k, v, Packing.from_lengths([packing.num_tokens]), **options)

    return leaky


def mix_tokens(forward):
    def leaky(self, x, packing):
        return forward(self, x + 0.1 * x.roll(1, 0), packing)

    return leaky


LEAKS = {
    "conv": ("mamba1-kept", mamba1, "causal_conv1d", forget_documents),
    "scan": ("mamba1-kept", mamba1, "selective_scan", forget_documents),
    "inner": ("mamba1", mamba1, "mamba1_inner", forget_the_packing),
    "attention": ("attention", attention_mixer, "varlen_attention", attend_to_the_whole_pack),
    "attention-gqa": ("attention-gqa", attention_mixer, "varlen_attention", attend_to_the_whole_pack),
    "attention-window": ("attention-window", attention_mixer, "varlen_attention", attend_to_the_whole_pack),
    "mlp": ("mlp", GatedMLP, "forward", mix_tokens),
}


@pytest.mark.parametrize(("mixer", "owner", "attribute", "leak"), LEAKS.values(), ids=LEAKS.keys())
class TestTheChecksCatchALeak:
    def test_in_a_mixer(self, monkeypatch, mixer, owner, attribute, leak):
        packing = Packing.from_lengths(SEVERAL)
        monkeypatch.setattr(owner, attribute, leak(getattr(owner, attribute)))
        run, inputs = mixer_case(mixer, packing, torch.float32)
        with pytest.raises(AssertionError, match="elements differ"):
            check_no_leak(run, inputs, packing)
        with pytest.raises(AssertionError, match="RMS error ratio"):
            check_packed_equals_separate(run, inputs, packing, RATIO[torch.float32])
        with pytest.raises(AssertionError, match="RMS error ratio"):
            check_permutation(run, inputs, packing, RATIO[torch.float32])

    def test_in_a_model(self, monkeypatch, mixer, owner, attribute, leak):
        packing = Packing.from_lengths(SEVERAL)
        monkeypatch.setattr(owner, attribute, leak(getattr(owner, attribute)))
        run, ids = model_case(MODEL_PATTERN, packing, torch.float32, recompute=recompute_of(mixer))
        with pytest.raises(AssertionError, match="elements differ"):
            check_no_leak(run, ids, packing)
        with pytest.raises(AssertionError, match="RMS error ratio"):
            check_packed_equals_separate(run, ids, packing, RATIO[torch.float32])


def test_the_model_check_catches_a_loss_that_mixes_tokens(monkeypatch):
    packing = Packing.from_lengths(SEVERAL)
    original = hybrid_lm.linear_cross_entropy

    def leaky(hidden, *args, **options):
        return original(hidden.roll(1, 0), *args, **options)

    monkeypatch.setattr(hybrid_lm, "linear_cross_entropy", leaky)
    run, ids = model_case(MODEL_PATTERN, packing, torch.float32)
    with pytest.raises(AssertionError, match=r"loss.* of document .* elements differ"):
        check_no_leak(run, ids, packing)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_nan_in_one_document_leaves_every_bit_of_the_others(mixer):
    packing = Packing.from_lengths(SEVERAL)
    run, x = mixer_case(mixer, packing, torch.float32)
    poisoned = x.clone()
    poisoned[7] = float("nan")  # inside the document of 30 tokens
    before, after = run(x, packing), run(poisoned, packing)
    for name in before:
        old, new = packing.unpack(before[name]), packing.unpack(after[name])
        assert not torch.isfinite(new[2]).all(), f"{name}: the NaN vanished"
        for j in (0, 1, 3, 4, 5):
            assert_identical(f"{name} of document {j}", old[j], new[j])


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_what_the_backward_computes_again_does_not_matter(recompute):
    packing = Packing.from_lengths(SEVERAL)
    case = model_case(MODEL_PATTERN, packing, torch.float32, recompute=recompute)
    check_no_leak(*case, packing)
    check_packed_equals_separate(*case, packing, RATIO[torch.float32])


def test_a_nan_token_leaves_logits_losses_and_gradients_of_other_documents_finite():
    packing = Packing.from_lengths(SEVERAL)
    torch.manual_seed(0)
    model = HybridLM(small_config(MODEL_PATTERN, tie_embeddings=False))
    with torch.no_grad():
        model.backbone.embedding.weight[VOCAB - 1] = float("nan")
    ids = torch.randint(VOCAB - 1, (packing.num_tokens,))
    ids[7] = VOCAB - 1
    for name, x in run_model(model, ids, packing).items():
        documents = packing.unpack(x)
        assert not torch.isfinite(documents[2]).all(), f"{name}: the NaN vanished"
        for j in (0, 1, 3, 4, 5):
            assert torch.isfinite(documents[j]).all(), f"{name} of document {j}"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["varlen", "flash", "sdpa"])
def test_attention_backends_agree_inside_the_mixer(monkeypatch, backend):
    if reason := explain_backends("cuda")[backend]:
        pytest.skip(f"{backend}: {reason}")
    packing = Packing.from_lengths(SEVERAL).to("cuda")
    run, x = mixer_case("attention-window", packing, torch.bfloat16, "cuda")
    original = attention_mixer.varlen_attention
    monkeypatch.setattr(
        attention_mixer, "varlen_attention", lambda *args, **options: original(*args, **options | {"backend": backend})
    )
    check_no_leak(run, x, packing)
    check_packed_equals_separate(run, x, packing, RATIO[torch.bfloat16])
