"""Packing and PackedBatch: three ways in, one frozen description out, and every malformed input refused by name."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from packmamba.packing import PackedBatch, Packing

TABLES = ("start", "length", "seq", "cu_segments", "order", "walks", "walk_order")

lengths_strategy = st.lists(st.integers(1, 200), min_size=1, max_size=30)


@given(lengths=lengths_strategy)
@settings(max_examples=50)
def test_lengths_cu_seqlens_and_position_ids_describe_the_same_packing(lengths: list[int]) -> None:
    packing = Packing.from_lengths(lengths)
    assert packing.lengths.tolist() == packing.host_lengths == lengths
    assert packing.num_tokens == sum(lengths)
    assert packing.num_seqs == len(lengths)
    assert packing.max_seqlen == max(lengths)
    assert packing.cu_seqlens.tolist() == np.cumsum([0, *lengths]).tolist()
    assert packing.seq_idx.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert packing.position_ids.tolist() == [t for n in lengths for t in range(n)]
    for other in (
        Packing.from_cu_seqlens(packing.cu_seqlens, num_tokens=sum(lengths)),
        Packing.from_position_ids(packing.position_ids),
        Packing.from_position_ids(packing.position_ids[None].long()),
        Packing.from_lengths(packing.lengths),
        Packing.from_lengths(np.array(lengths)),
    ):
        assert torch.equal(other.cu_seqlens, packing.cu_seqlens)
        assert other.cu_seqlens.dtype == torch.int32
        assert torch.equal(other.schedule.chunks.start, packing.schedule.chunks.start)


@given(lengths=lengths_strategy)
@settings(max_examples=20)
def test_unpack_gives_each_document_back(lengths: list[int]) -> None:
    x = torch.randn(sum(lengths), 3)
    documents = Packing.from_lengths(lengths).unpack(x)
    assert [len(document) for document in documents] == lengths
    assert torch.equal(torch.cat(documents), x)


def test_a_packing_does_not_share_memory_with_the_callers_tensor() -> None:
    cu_seqlens = torch.tensor([0, 3, 5], dtype=torch.int32)
    packing = Packing.from_cu_seqlens(cu_seqlens)
    cu_seqlens[1] = 4
    assert packing.cu_seqlens.tolist() == [0, 3, 5]


def test_packing_and_batch_are_frozen() -> None:
    batch = PackedBatch.from_documents([[1, 2], [3]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.packing.max_seqlen = 7  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.num_padding = 7  # pyright: ignore[reportAttributeAccessIssue]


def test_to_the_same_device_returns_the_same_packing() -> None:
    packing = Packing.from_lengths([2, 3])
    assert packing.to("cpu") is packing


def test_to_another_device_moves_every_tensor_and_keeps_the_host_copy() -> None:
    batch = PackedBatch.from_documents([[1, 2], [3]]).to("meta")
    assert batch.input_ids.is_meta
    assert batch.labels.is_meta
    assert batch.packing.cu_seqlens.is_meta
    assert batch.packing.schedule.chunks.start.is_meta
    assert batch.packing.seq_idx.is_meta
    assert batch.packing.host_lengths == [2, 1]


@pytest.mark.gpu
def test_pinned_batches_reach_the_gpu_whole() -> None:
    batch = PackedBatch.from_documents([[1, 2], [3]])
    pinned = batch.pin_memory()
    assert pinned.input_ids.is_pinned()
    assert pinned.packing.cu_seqlens.is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    assert torch.equal(moved.packing.position_ids.cpu(), batch.packing.position_ids)
    assert torch.equal(moved.labels.cpu(), batch.labels)


def test_labels_never_cross_a_document_boundary() -> None:
    batch = PackedBatch.from_documents([[10, 11, 12], [20], [30, 31]])
    assert batch.input_ids.tolist() == [10, 11, 12, 20, 30, 31]
    assert batch.labels.tolist() == [11, 12, -100, -100, 31, -100]
    assert batch.num_targets == 3
    assert batch.num_tokens == 6


BAD_PACKINGS = {
    "no document": (lambda: Packing.from_lengths([]), ValueError, "at least one document"),
    "empty document": (lambda: Packing.from_lengths([4, 0, 2]), ValueError, "document 1 has length 0"),
    "negative length": (lambda: Packing.from_lengths([4, 2, -3]), ValueError, "document 2 has length -3"),
    "float lengths": (lambda: Packing.from_lengths(np.array([1.5])), TypeError, "float64"),
    "two-dimensional lengths": (lambda: Packing.from_lengths(np.ones((2, 2), dtype=int)), ValueError, r"\(2, 2\)"),
    "over int32": (lambda: Packing.from_lengths([2**31 - 1, 1]), ValueError, "2147483648 tokens"),
    "int64 cu_seqlens": (lambda: Packing.from_cu_seqlens(torch.tensor([0, 3])), TypeError, "torch.int64"),
    "list cu_seqlens": (lambda: Packing.from_cu_seqlens([0, 3]), TypeError, "list"),
    "not from zero": (lambda: Packing.from_cu_seqlens(torch.tensor([1, 3]).int()), ValueError, "start at 0, got 1"),
    "not increasing": (
        lambda: Packing.from_cu_seqlens(torch.tensor([0, 5, 3]).int()),
        ValueError,
        "entry 1 is 5 and entry 2 is 3",
    ),
    "equal neighbours": (
        lambda: Packing.from_cu_seqlens(torch.tensor([0, 3, 3]).int()),
        ValueError,
        "entry 1 is 3 and entry 2 is 3",
    ),
    "not ending at T": (
        lambda: Packing.from_cu_seqlens(torch.tensor([0, 3]).int(), num_tokens=4),
        ValueError,
        "ends at 3, but the pack has T = 4",
    ),
    "one entry": (lambda: Packing.from_cu_seqlens(torch.tensor([0]).int()), ValueError, r"\(1,\)"),
    "positions not from zero": (lambda: Packing.from_position_ids(torch.tensor([1, 2])), ValueError, "got 1"),
    "positions with a gap": (
        lambda: Packing.from_position_ids(torch.tensor([0, 1, 3])),
        ValueError,
        "position 3 at index 2 follows 1",
    ),
    "float positions": (lambda: Packing.from_position_ids(torch.tensor([0.0])), TypeError, "float32"),
    "batched positions": (
        lambda: Packing.from_position_ids(torch.zeros(2, 3, dtype=torch.long)),
        ValueError,
        r"\(2, 3\)",
    ),
    "unpack of another length": (
        lambda: Packing.from_lengths([2, 3]).unpack(torch.zeros(4, 1)),
        ValueError,
        r"\(4, 1\).*T = 5",
    ),
    "empty document in a batch": (lambda: PackedBatch.from_documents([[1], []]), ValueError, "document 1 has length 0"),
    "int32 ids": (
        lambda: PackedBatch(torch.zeros(2).int(), torch.zeros(2).long(), Packing.from_lengths([2]), 1),
        TypeError,
        "input_ids must be int64, got torch.int32",
    ),
    "ids in a list": (
        lambda: PackedBatch([1, 2], torch.zeros(2).long(), Packing.from_lengths([2])),
        TypeError,
        "input_ids must be a tensor, got list",
    ),
    "lengths for a packing": (
        lambda: PackedBatch(torch.zeros(2).long(), torch.zeros(2).long(), [2]),
        TypeError,
        "packing must be a Packing, got list",
    ),
    "labels of another length": (
        lambda: PackedBatch(torch.zeros(2).long(), torch.zeros(3).long(), Packing.from_lengths([2]), 1),
        ValueError,
        r"labels has shape \(3,\).*T = 2",
    ),
}


@pytest.mark.parametrize("name", BAD_PACKINGS)
def test_malformed_input_is_refused_with_its_value(name: str) -> None:
    build, error, message = BAD_PACKINGS[name]
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))], ids=["copy", "pickle"]
)
def test_a_copied_batch_is_the_same(again, device):
    batch = PackedBatch.from_documents([[1, 2, 3], list(range(70)), [4]]).to(device)
    if device == "meta" and again is not copy.deepcopy:
        pytest.skip("torch does not pickle what has no data")
    twin = again(batch)
    assert (twin.num_targets, twin.num_padding, twin.step_targets) == (batch.num_targets, 0, None)
    assert twin.packing.host_lengths == [3, 70, 1]
    assert (twin.packing.num_tokens, twin.packing.max_seqlen) == (74, 70)
    assert twin.packing.device.type == device
    for name in ("input_ids", "labels"):
        assert getattr(twin, name).dtype == torch.int64
    if device == "cpu":
        assert torch.equal(twin.input_ids, batch.input_ids)
        assert torch.equal(twin.labels, batch.labels)
        assert torch.equal(twin.packing.cu_seqlens, batch.packing.cu_seqlens)
        for level, twin_level in zip(batch.packing.schedule.levels, twin.packing.schedule.levels, strict=True):
            assert level.size == twin_level.size
            for name in TABLES:
                assert torch.equal(getattr(level, name), getattr(twin_level, name))


def test_a_pickled_batch_holds_no_tensor():
    """A loader worker would send each by a file descriptor of its own."""
    batch = PackedBatch.from_documents([[1, 2, 3], [4]])
    assert b"torch" not in pickle.dumps(batch)


class Copies(TorchDispatchMode):
    """The tensors that are copied to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function)
        if "_to_copy" in name and result.device != args[0].device:
            self.sizes.append(args[0].numel())
        assert "copy_." not in name or args[0].device == args[1].device
        return result


@pytest.fixture
def pinned_sizes(monkeypatch) -> list[int]:
    """Pinning without a GPU: a copy, and how many elements each had."""
    sizes = []

    def pin(tensor):
        sizes.append(tensor.numel())
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return sizes


def assert_same_batch(wanted: PackedBatch, actual: PackedBatch) -> None:
    assert (wanted.num_targets, wanted.num_padding) == (actual.num_targets, actual.num_padding)
    assert wanted.packing.host_lengths == actual.packing.host_lengths
    assert wanted.packing.max_seqlen == actual.packing.max_seqlen
    for name in ("input_ids", "labels"):
        assert torch.equal(getattr(wanted, name), getattr(actual, name))
    assert torch.equal(wanted.packing.cu_seqlens, actual.packing.cu_seqlens)
    for level, other in zip(wanted.packing.schedule.levels, actual.packing.schedule.levels, strict=True):
        assert level.size == other.size
        for name in TABLES:
            assert torch.equal(getattr(level, name), getattr(other, name)), name
            assert getattr(other, name).dtype == torch.int32


@given(lengths=lengths_strategy)
@settings(max_examples=20)
def test_a_batch_in_one_piece_holds_the_same_tables_aligned(lengths: list[int]) -> None:
    batch = PackedBatch.from_documents([list(range(n)) for n in lengths])
    whole = batch._held_in(batch._flat())
    assert_same_batch(batch, whole)
    for level in whole.packing.schedule.levels:
        for name in TABLES:
            assert getattr(level, name).storage_offset() % 4 == 0


def test_a_batch_moves_by_one_copy() -> None:
    batch = PackedBatch.from_documents([[1, 2, 3], list(range(700)), [4]])
    with Copies() as copies:
        moved = batch.to("meta", non_blocking=True)
    assert copies.sizes == [4 * 704 + batch.packing.schedule.buffer.numel()]
    for tensor in (moved.input_ids, moved.labels, moved.packing.cu_seqlens, moved.packing.schedule.chunks.walks):
        assert tensor.is_meta
    with Copies() as copies:
        batch.packing.to("meta")
    assert copies.sizes == [batch.packing.schedule.buffer.numel()]


def test_a_pinned_batch_is_one_piece_and_moves_as_it_is(pinned_sizes) -> None:
    batch = PackedBatch.from_documents([[1, 2, 3], list(range(700)), [4]])
    pinned = batch.pin_memory()
    size = 4 * 704 + batch.packing.schedule.buffer.numel()
    assert pinned_sizes == [size]
    assert_same_batch(batch, pinned)
    assert pinned._flat().data_ptr() == pinned.input_ids.data_ptr()
    with Copies() as copies:
        pinned.to("meta")
    assert copies.sizes == [size]


def test_a_pinned_batch_with_a_tensor_replaced_moves_that_tensor(pinned_sizes) -> None:
    pinned = PackedBatch.from_documents([[1, 2, 3], [4]]).pin_memory()
    changed = dataclasses.replace(pinned, input_ids=pinned.input_ids + 1)
    assert_same_batch(changed, changed._held_in(changed._flat().clone()))
    swapped = dataclasses.replace(pinned, input_ids=pinned.labels, labels=pinned.input_ids)
    assert_same_batch(swapped, swapped._held_in(swapped._flat().clone()))


def test_a_pickled_batch_is_equal_in_every_table(pinned_sizes) -> None:
    batch = PackedBatch.from_documents([[1, 2, 3], list(range(700)), [4]])
    again = pickle.loads(pickle.dumps(batch))
    assert_same_batch(batch, again)
    assert_same_batch(batch, again.pin_memory())
    assert_same_batch(batch, pickle.loads(pickle.dumps(again.pin_memory())))


def test_a_batch_whose_packing_is_on_another_device_moves_too() -> None:
    batch = PackedBatch.from_documents([[1, 2], [3]])
    moved = dataclasses.replace(batch, packing=batch.packing.to("meta")).to("meta")
    assert moved.input_ids.is_meta
    assert moved.packing.cu_seqlens.is_meta


def test_targets_are_counted_where_they_are_not_given() -> None:
    ids, labels = torch.arange(5), torch.tensor([1, -100, 3, 4, -100])
    assert PackedBatch(ids, labels, Packing.from_lengths([2, 3])).num_targets == 3
    assert PackedBatch(ids, labels, Packing.from_lengths([2, 3]), 2).num_targets == 2
