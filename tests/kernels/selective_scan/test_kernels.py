"""The Triton kernels of the packed selective scan, on packs small enough for Triton's interpreter.

Run by test_interpreter.py, in the interpreter and, where there is one, on a GPU.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from packmamba_kernels import selective_scan
from packmamba_kernels.runtime.triton_glue import INTERPRET
from packmamba_kernels.schedule import Documents, build_schedule
from packmamba_kernels.selective_scan.naive import selective_scan_naive
from packmamba_kernels.selective_scan.op import SELECTIVE_SCAN

from tests.kernels.selective_scan.scan_cases import (
    assert_backward_gives_the_output_again,
    assert_documents_identical,
    assert_same_as_definition,
    cu_seqlens_of,
    flat_documents,
    make_inputs,
    run,
    run_permutable,
)
from tests.support import DEVICE, assert_close, assert_identical, skip_without_memory

pytestmark = pytest.mark.skipif(not INTERPRET and DEVICE == "cpu", reason="run by test_interpreter.py")

ROUNDING = 1.6 if INTERPRET else 1.0
"""Triton's interpreter rounds fp32 to bf16 towards zero, an error 1.6 times what the nearest value has."""


def assert_kernel_same_as_definition(
    lengths, dtype=torch.float32, channels=6, states=4, groups=None, seed=0, **options
):
    names = ("skip", "gate", "bias", "initial")
    inputs = make_inputs(
        lengths, channels, states, groups, dtype, seed, **{k: options.pop(k) for k in names if k in options}
    )
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of(lengths), ROUNDING, **options)


def fix_segment_size(monkeypatch, size):
    fixed = dataclasses.replace(SELECTIVE_SCAN.definition, segment_size=lambda u, count: size)
    monkeypatch.setattr(SELECTIVE_SCAN, "definition", fixed)


@pytest.fixture
def segments_of(monkeypatch):
    """Fixes the tokens of a segment."""
    return lambda size: fix_segment_size(monkeypatch, size)


@pytest.fixture
def poisoned_memory():
    """torch.empty comes filled with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("lengths", "dtype"),
    [
        ([1], torch.float32),
        ([3, 1, 64, 65], torch.float32),
        ([130], torch.float32),
        ([66, 1, 5], torch.bfloat16),
        ([66, 5], torch.float16),
    ],
    ids=str,
)
def test_equals_the_definition_and_leaves_nothing_unwritten(lengths, dtype, poisoned_memory):
    assert torch.empty(3, device=DEVICE).isnan().all()
    assert_kernel_same_as_definition(lengths, dtype)


@settings(max_examples=12, phases=[Phase.generate])
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    width=st.integers(2, 5),
    groups=st.sampled_from([None, 1, 3]),
    options=st.fixed_dictionaries({name: st.booleans() for name in ("skip", "gate", "bias", "initial")}),
    final_states=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**20),
)
def test_equals_the_definition_for_random_packings(lengths, width, groups, options, final_states, dtype, seed):
    assert_kernel_same_as_definition(
        [*lengths, 20], dtype, width * (groups or 1), 4, groups, seed, final_states=final_states, **options
    )


@pytest.mark.parametrize("initial", [False, True])
def test_state_passes_through_many_segments(initial):
    assert_kernel_same_as_definition([195, 2, 70], initial=initial, final_states=initial, skip=False, bias=False)


@pytest.mark.parametrize("size", [128, 256])
def test_segments_of_several_chunks_equal_the_definition(size, segments_of):
    segments_of(size)
    assert_kernel_same_as_definition([205, 3])


@pytest.mark.parametrize("states", [8, 16, 32, 64, 128])
def test_equals_the_definition_for_every_number_of_states(states):
    assert_kernel_same_as_definition([7, 2], channels=3, states=states)


@pytest.mark.parametrize(
    ("states", "dtype", "channels", "groups"),
    [
        (32, torch.bfloat16, 64, 2),
        (64, torch.bfloat16, 32, None),
        (128, torch.float16, 32, None),
    ],
    ids=str,
)
def test_many_states_equal_the_definition_over_links_and_whole_channel_blocks(states, dtype, channels, groups):
    assert_kernel_same_as_definition([3, 66], dtype, channels, states, groups)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_loaded_as_words_and_as_they_are_give_the_same_bits(dtype, monkeypatch):
    """Rows that do not begin at a multiple of 32 bits cannot be loaded as words."""
    from packmamba_kernels.selective_scan import launch

    def at_odd_strides(u, delta, z, **others):
        u, delta, z, _ = torch.cat([u, delta, z, u[:, :1]], 1).split([32, 32, 32, 1], 1)
        return selective_scan(u, delta, z=z, **others)

    taken, chosen = [], launch.loads_words
    monkeypatch.setattr(launch, "loads_words", lambda *given: taken.append(chosen(*given)) or taken[-1])
    inputs, cu_seqlens = make_inputs([5, 2], 32, 32, None, dtype), cu_seqlens_of([5, 2])
    as_words, as_they_are = (run(function, inputs, cu_seqlens) for function in (selective_scan, at_odd_strides))
    assert taken == [True, False]
    for name, value in as_words.items():
        assert_identical(name, value, as_they_are[name])


@pytest.mark.parametrize(("channels", "groups"), [(70, None), (140, 2), (128, None)])
def test_equals_the_definition_for_several_channel_blocks(channels, groups):
    assert_kernel_same_as_definition([6, 3], channels=channels, states=16, groups=groups)


def test_steps_without_softplus_equal_the_definition():
    inputs = make_inputs([5, 66])
    inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs() * 0.1, inputs["delta_bias"].abs() * 0.1
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of([5, 66]), softplus=False)


@pytest.mark.parametrize("shift", [-6.0, 2.0])
def test_tiny_and_huge_steps_equal_the_definition(shift):
    inputs = make_inputs([70, 20])
    inputs["delta_bias"] = inputs["delta_bias"] + 2 + shift
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of([70, 20]))


def test_gradients_are_right_where_states_decay_within_a_step():
    inputs = make_inputs([70, 3])
    inputs["delta_bias"], inputs["A"] = inputs["delta_bias"] + 30, inputs["A"].clamp(max=-0.7)
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of([70, 3]), final_states=False)


def test_few_programs_that_take_many_walks_equal_the_definition(monkeypatch):
    from packmamba_kernels.selective_scan import launch

    monkeypatch.setattr(launch, "PARTIAL_SUMS", 1)
    assert_kernel_same_as_definition([5, 66, 1, 3])


def test_the_kernels_are_what_runs(monkeypatch):
    from packmamba_kernels.selective_scan import launch

    def refuse(*arguments):
        raise AssertionError("the kernel was asked")

    monkeypatch.setattr(launch, "forward", refuse)
    with pytest.raises(AssertionError, match="the kernel was asked"):
        selective_scan(**make_inputs([3], initial=False))


def test_fp64_is_refused():
    with pytest.raises(TypeError, match=r"float64, which runs on the CPU only.*float16, bfloat16 or float32"):
        selective_scan(**make_inputs([3], dtype=torch.float64, initial=False))


def test_only_the_final_states_may_have_a_gradient():
    inputs, cu_seqlens = make_inputs([66, 3]), cu_seqlens_of([66, 3])
    gradients = []
    for function in (selective_scan, selective_scan_naive):
        leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
        _, state = function(**leaves, delta_softplus=True, cu_seqlens=cu_seqlens, return_final_states=True)
        gradients.append(torch.autograd.grad(state.square().sum(), [leaves[k] for k in ("u", "delta", "A", "B")]))
    for name, actual, wanted in zip(("du", "ddelta", "dA", "dB"), *gradients, strict=True):
        assert_close(name, wanted, actual, 5e-5)


@pytest.mark.parametrize("gate", [True, False])
def test_the_backward_gives_the_output_again_where_asked(gate):
    assert_backward_gives_the_output_again([70, 3], gate=gate)


def test_rows_may_be_strided_and_a_schedule_changes_nothing():
    lengths = [5, 1, 66]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)
    wanted = run(selective_scan, inputs, cu_seqlens)
    u, z = torch.cat([inputs["u"], inputs["z"]], 1).chunk(2, 1)
    delta, B, C = torch.cat([inputs["delta"], inputs["B"], inputs["C"]], 1).split([6, 4, 4], 1)
    leaves = inputs | {"u": u, "z": z, "delta": delta, "B": B, "C": C}
    leaves = {k: v.requires_grad_() for k, v in leaves.items()}
    schedule = build_schedule(cu_seqlens.cpu()).to(DEVICE)
    out = selective_scan(**leaves, delta_softplus=True, cu_seqlens=cu_seqlens, schedule=schedule)
    assert_identical("out", wanted["out"], out)
    again = run(selective_scan, inputs, cu_seqlens, schedule=schedule)
    for name, value in wanted.items():
        assert_identical(name, value, again[name])


def test_documents_are_bit_identical_whatever_the_others_hold_and_wherever_they_lie():
    lengths = [5, 70, 1, 66]
    inputs = make_inputs(lengths)
    before = run_permutable(selective_scan, inputs, lengths, range(4))
    changed = {k: v.clone() for k, v in inputs.items()}
    for name in ("u", "delta", "B", "C", "z"):
        changed[name][5:75] *= -3
    changed["initial_states"][1] += 1
    after = run_permutable(selective_scan, changed, lengths, range(4))
    assert_documents_identical(before, after, (0, 2, 3))
    assert not torch.equal(before[1]["out"], after[1]["out"])
    assert_documents_identical(before, run_permutable(selective_scan, inputs, lengths, (3, 1, 0, 2)), range(4))


def test_a_nan_in_one_document_does_not_reach_another():
    lengths = [3, 66, 4]
    inputs = make_inputs(lengths)
    before = run_permutable(selective_scan, inputs, lengths, range(3))
    poisoned = {k: v.clone() for k, v in inputs.items()}
    for name in ("u", "delta", "B", "C", "z"):
        poisoned[name][20] = float("nan")
    after = run_permutable(selective_scan, poisoned, lengths, range(3))
    assert after[1]["out"].isnan().any()
    assert_documents_identical(before, after, (0, 2))


def test_a_walk_that_starts_before_its_document_is_noticed(monkeypatch):
    """Segments that run over a boundary fail the isolation check."""
    lengths = [5, 9, 3]
    inputs = make_inputs(lengths)
    segments_of_documents = Documents.segments

    def shifted(documents):
        segments = segments_of_documents(documents)
        later = (segments.start != 0).int()
        return dataclasses.replace(segments, start=segments.start - later, length=segments.length + later)

    monkeypatch.setattr(Documents, "segments", shifted)
    before = run_permutable(selective_scan, inputs, lengths, range(3))
    changed = {k: v.clone() for k, v in inputs.items()}
    changed["u"][5:14] *= -3
    with pytest.raises(AssertionError, match="elements differ"):
        assert_documents_identical(before, run_permutable(selective_scan, changed, lengths, range(3)), (0, 2))


@pytest.mark.skipif(DEVICE != "cpu", reason="the memory of the rows between is never touched, which only a CPU allows")
def test_offsets_beyond_32_bits_find_their_rows():
    stride = 3 * 2**28  # the last row begins past 2^31 elements
    inputs = make_inputs([4], dtype=torch.bfloat16, initial=False)
    apart = torch.empty(3 * stride + 6, dtype=torch.bfloat16).as_strided((4, 6), (stride, 1))
    apart.copy_(inputs["u"])
    assert 3 * apart.stride(0) > 2**31
    wanted = run(selective_scan, inputs, None)
    leaves = {k: v if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()}
    leaves |= {"u": apart.requires_grad_(), "z": apart.detach().requires_grad_(), "delta": apart.detach()}
    same = inputs | {"z": inputs["u"], "delta": inputs["u"]}
    far = selective_scan(**leaves, delta_softplus=True)
    near = {k: v if v is None else v.detach().clone().requires_grad_() for k, v in same.items()}
    out = selective_scan(**near, delta_softplus=True)
    assert_identical("out", out, far)
    assert wanted["out"].shape == out.shape
    for name in ("B", "C", "A"):
        (here,) = torch.autograd.grad(out.float().sum(), near[name], retain_graph=True)
        (there,) = torch.autograd.grad(far.float().sum(), leaves[name], retain_graph=True)
        assert_identical(f"d{name}", here, there)


@pytest.mark.parametrize("full", [True, False])
def test_registered_as_torch_requires(full):
    lengths = [2, 1]
    inputs = make_inputs(lengths, 2, 4, skip=full, gate=full, bias=full, initial=full)
    arguments = [v if v is None else v.requires_grad_() for v in inputs.values()]
    cu_seqlens = cu_seqlens_of(lengths)
    documents = flat_documents(inputs["u"], cu_seqlens, build_schedule(cu_seqlens) if full else None)
    torch.library.opcheck(SELECTIVE_SCAN.registered_forward, (*arguments, *documents, True, full, False))


def test_compiles_without_a_graph_break():
    lengths = [3, 2]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    wanted = run(selective_scan, inputs, cu_seqlens)
    for name, value in run(compiled, inputs, cu_seqlens).items():
        assert_identical(name, wanted[name], value)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="run by test_interpreter.py with tensors on the GPU")
def test_more_elements_than_32_bits_count():
    """T·E past 2^31: the last document's bits are those it has in a small pack of the same segment size."""
    skip_without_memory(18)  # u, delta, z and out: 4 GiB each
    channels, tail = 4096, 300
    head = 2**31 // channels + 1
    lengths = [head, tail]
    small = make_inputs([tail], channels, 16, dtype=torch.bfloat16, initial=False)
    big = dict(small)
    for name in ("u", "delta", "z", "B", "C"):
        big[name] = torch.empty(head + tail, small[name].shape[1], dtype=torch.bfloat16, device=DEVICE).normal_()
        big[name][head:] = small[name]
    out = selective_scan(**big, delta_softplus=True, cu_seqlens=cu_seqlens_of(lengths))
    with pytest.MonkeyPatch.context() as patch:
        fix_segment_size(patch, 4096)
        wanted = selective_scan(**small, delta_softplus=True)
    assert_identical("out", wanted, out[head:])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="run by test_interpreter.py with tensors on the GPU")
def test_a_call_with_a_schedule_records_in_a_cuda_graph():
    """So nothing in it waits for the device, forward or backward."""
    lengths = [300, 1, 64]
    inputs = {k: v.requires_grad_() for k, v in make_inputs(lengths, 64, 16, initial=False).items() if v is not None}
    cu_seqlens = cu_seqlens_of(lengths)
    schedule = build_schedule(cu_seqlens.cpu()).to(DEVICE)

    def step():
        out = selective_scan(**inputs, delta_softplus=True, cu_seqlens=cu_seqlens, schedule=schedule)
        return [out, *torch.autograd.grad(out.sum(), list(inputs.values()))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted = step()  # compiles, and fills the allocator
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    graph.replay()
    torch.cuda.synchronize()
    for expected, actual in zip(wanted, recorded, strict=True):
        assert_identical("recorded", expected, actual)
