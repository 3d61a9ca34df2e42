"""Going on from a state: prefill in pieces and single steps give what the full forward gives."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from packmamba import HybridLM, Packing
from packmamba.config import ComputeOptions
from packmamba.model import ModelState
from packmamba.model.mixers.attention import AttentionState
from packmamba.model.mixers.mamba1 import Mamba1State
from tests.model.guarantee import RATIO, VOCAB, change, small_config
from tests.support import assert_close, assert_identical

B = 8
"""Documents of a pack: this many rows a product sums in the same order as with any multiple of them."""

PATTERNS = {"mamba": "1-11", "two-states": "1s1", "attention": "*-*", "window": "w-w", "hybrid": "1-*1w-"}


@functools.cache
def model_of(layer_pattern: str, dtype: torch.dtype = torch.float32) -> HybridLM:
    torch.manual_seed(0)
    return HybridLM(small_config(layer_pattern)).to(dtype).requires_grad_(False)


def make_documents(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCAB, (length,), generator=generator) for length in lengths]


def full_forward(model: HybridLM, documents: list[Tensor]) -> list[Tensor]:
    packing = Packing.from_lengths([len(document) for document in documents])
    return packing.unpack(model(torch.cat(documents), packing))


def advance(
    model: HybridLM, documents: list[Tensor], state: ModelState | None = None
) -> tuple[list[Tensor], ModelState]:
    packing = Packing.from_lengths([len(document) for document in documents])
    logits, state = model.advance(torch.cat(documents), packing, state)
    return packing.unpack(logits), state


def in_pieces(model: HybridLM, documents: list[Tensor], pieces: list[list[int]]) -> list[Tensor]:
    """Logits of documents that go through in calls. pieces: for each call, the tokens of each document."""
    state, done, found = None, [0] * len(documents), [[] for _ in documents]
    for piece in pieces:
        rows = [document[d : d + n] for document, d, n in zip(documents, done, piece, strict=True)]
        logits, state = advance(model, rows, state)
        for i, n in enumerate(piece):
            done[i] += n
            found[i].append(logits[i])
    return [torch.cat(parts) for parts in found]


@st.composite
def chunkings(draw: st.DrawFn, longest: int) -> list[list[int]]:
    """Some calls, each of 8 tokens or a multiple: for each call, the tokens of each of 8 documents."""
    calls = draw(st.integers(1, 5))
    pieces = []
    for _ in range(calls):
        tokens = draw(st.lists(st.integers(1, longest // calls), min_size=B - 1, max_size=B - 1))
        pieces.append([*tokens, 1 + -(sum(tokens) + 1) % B])
    return pieces


@settings(max_examples=25, deadline=None)
@given(pieces=chunkings(64), dtype=st.sampled_from(list(RATIO)), pattern=st.sampled_from(["1", "1-11", "1s1"]))
def test_pieces_of_a_mamba_model_equal_the_full_forward_bit_for_bit(pieces, dtype, pattern):
    """Documents of at most 64 tokens, one segment of the scan: longer ones' states are joined by products."""
    documents = make_documents([sum(tokens) for tokens in zip(*pieces, strict=True)])
    model = model_of(pattern, dtype)
    for i, (whole, parts) in enumerate(
        zip(full_forward(model, documents), in_pieces(model, documents, pieces), strict=True)
    ):
        assert_identical(f"document {i}", whole, parts)


@settings(max_examples=25, deadline=None)
@given(pieces=chunkings(200), pattern=st.sampled_from(list(PATTERNS.values())), dtype=st.sampled_from(list(RATIO)))
def test_pieces_of_any_model_equal_the_full_forward(pieces, pattern, dtype):
    documents = make_documents([sum(tokens) for tokens in zip(*pieces, strict=True)])
    model = model_of(pattern, dtype)
    for i, (whole, parts) in enumerate(
        zip(full_forward(model, documents), in_pieces(model, documents, pieces), strict=True)
    ):
        assert_close(f"document {i}", whole, parts, RATIO[dtype])


@pytest.mark.parametrize("dtype", RATIO, ids=["fp32", "bf16"])
def test_steps_of_a_mamba_model_equal_the_full_forward_bit_for_bit(dtype):
    documents = make_documents([40] * B)
    model = model_of("1-11", dtype)
    steps = in_pieces(model, documents, [[16] * B, *[[1] * B] * 24])
    for i, (whole, parts) in enumerate(zip(full_forward(model, documents), steps, strict=True)):
        assert_identical(f"document {i}", whole, parts)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_another_document_changes_no_bit(pattern):
    lengths = [3, 5, 1, 9, 2, 4, 7, 1]
    packing, model = Packing.from_lengths(lengths), model_of(pattern)
    documents, steps = make_documents(lengths), make_documents([1] * B)
    before, state = advance(model, documents)
    after_steps, _ = advance(model, steps, state)
    for i in range(B):
        changed = list(packing.unpack(change(torch.cat(documents), packing, i)))
        logits, state = advance(model, changed)
        next_logits, _ = advance(model, steps, state)
        assert not torch.equal(next_logits[i], after_steps[i]), "nothing was changed"
        for j in range(B):
            if j != i:
                assert_identical(f"document {j} after {i}", before[j], logits[j])
                assert_identical(f"step of document {j} after {i}", after_steps[j], next_logits[j])


def test_several_continuations_start_from_one_state():
    model, documents = model_of("1-*1w-"), make_documents([5] * B)
    _, state = advance(model, documents)
    first, _ = advance(model, make_documents([2] * B), state)
    advance(model, make_documents([7] * B), state)
    again, _ = advance(model, make_documents([2] * B), state)
    assert_identical("logits", torch.cat(first), torch.cat(again))


def test_states_have_the_shapes_and_bytes_that_the_configuration_promises():
    model = model_of("1*w-").double().float()
    lengths = [3, 9, 1]
    _, state = advance(model, make_documents(lengths))
    mamba, attention, window, mlp = state.layers
    assert isinstance(mamba, Mamba1State)
    assert (mamba.conv.shape, mamba.scan.shape, mamba.scan.dtype) == ((3, 64, 3), (3, 64, 8), torch.float32)
    assert isinstance(attention, AttentionState)
    assert attention.keys.shape == attention.values.shape == (13, 2, 8)
    assert isinstance(window, AttentionState)
    assert window.packing.host_lengths == [3, 3, 1]  # what the next token's window of 4 still shows
    assert window.seen.tolist() == lengths
    assert mlp is None
    layers = model.config.layers
    promised = [[layer.state_bytes(32, length, 4) for length in lengths] for layer in layers]
    assert sum(promised[0]) == mamba.conv.nbytes + mamba.scan.nbytes
    assert sum(promised[1]) == attention.keys.nbytes + attention.values.nbytes
    assert sum(promised[2]) == window.keys.nbytes + window.values.nbytes
    assert promised[3] == [0, 0, 0]


def test_a_state_moves_to_another_device():
    _, state = advance(model_of("1*-"), make_documents([3, 1]))
    mamba, attention, mlp = state.to("meta").layers
    assert isinstance(mamba, Mamba1State)
    assert isinstance(attention, AttentionState)
    assert {mamba.conv.device.type, mamba.scan.device.type, attention.keys.device.type} == {"meta"}
    assert attention.packing.device.type == attention.seen.device.type == "meta"
    assert mlp is None


def test_recomputation_does_not_matter_to_a_state():
    """A model that trains (with gradients switched on) goes on from states in the same way."""
    documents = make_documents([4] * B)
    torch.manual_seed(0)
    training = HybridLM(small_config("1-11"), ComputeOptions(recompute="block"))
    for wanted, actual in zip(full_forward(model_of("1-11"), documents), advance(training, documents)[0], strict=True):
        assert_identical("logits", wanted, actual.detach())


WRONG_STATES = {
    "documents": ("1*-", [1, 1, 1], "the state is of 2 documents, but the packing has 3"),
    "fewer-layers": ("1*", [1, 1], "the state is of a model of 3 layers, but this one has 2"),
    "other-layers": ("*1-", [1, 1], "layer 0 takes a state of class AttentionState, got Mamba1State"),
    "no-state": ("--1", [1, 1], "layer 0 takes a state of class NoneType, got Mamba1State"),
}


@pytest.mark.parametrize(("pattern", "lengths", "message"), WRONG_STATES.values(), ids=WRONG_STATES.keys())
def test_a_wrong_state_raises_naming_what_differs(pattern, lengths, message):
    _, state = advance(model_of("1*-"), make_documents([3, 1]))
    with pytest.raises(ValueError, match=message):
        advance(model_of(pattern), make_documents(lengths), state)
