"""The packed selective scan: against its definition, documents never see each other, torch's machinery.

On the CPU this tests the reference, on a GPU (as test_interpreter.py runs it) the Triton kernels. In Triton's
interpreter it would take an hour: test_kernels.py is for that.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packmamba_kernels import selective_scan
from packmamba_kernels.schedule import build_schedule
from packmamba_kernels.selective_scan import reference
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
from tests.support import DEVICE, LENGTHS, assert_close, assert_identical

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="of the reference: fp64, or its functions replaced")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_the_definition(lengths, dtype):
    assert_same_as_definition(selective_scan, make_inputs(lengths, dtype=dtype), cu_seqlens_of(lengths))


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=5),
    width=st.integers(2, 5),
    groups=st.sampled_from([None, 1, 3]),
    states=st.sampled_from([4, 16]),
    options=st.fixed_dictionaries({name: st.booleans() for name in ("skip", "gate", "bias", "initial")}),
    final_states=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_equals_the_definition_for_random_packings(lengths, width, groups, states, options, final_states, dtype, seed):
    lengths = [*lengths, 33]  # so that no tensor is a few elements that may cancel
    inputs = make_inputs(lengths, width * (groups or 1), states, groups, dtype, seed, **options)
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of(lengths), final_states=final_states)


@pytest.mark.parametrize("states", [8, 32, 128])
def test_equals_the_definition_for_every_number_of_states(states):
    lengths = [70, 3]
    assert_same_as_definition(selective_scan, make_inputs(lengths, 3, states), cu_seqlens_of(lengths))


def test_steps_without_softplus_equal_the_definition():
    lengths = [5, 130, 1]
    inputs = make_inputs(lengths)
    inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs() * 0.1, inputs["delta_bias"].abs() * 0.1
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of(lengths), softplus=False)


@pytest.mark.parametrize("shift", [-6.0, 2.0])
def test_tiny_and_huge_steps_equal_the_definition(shift):
    lengths = [200, 65]
    inputs = make_inputs(lengths)
    inputs["delta_bias"] = inputs["delta_bias"] + 2 + shift
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of(lengths))


def test_steps_where_softplus_is_linear_equal_the_definition():
    lengths = [70, 3]
    inputs = make_inputs(lengths)
    inputs["delta_bias"] = inputs["delta_bias"] + 30
    inputs["A"] = inputs["A"] * 0.01
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of(lengths))


def test_gradients_are_right_where_states_decay_within_a_step():
    lengths = [70, 3]
    inputs = make_inputs(lengths)
    inputs["delta_bias"], inputs["A"] = inputs["delta_bias"] + 30, inputs["A"].clamp(max=-0.7)
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of(lengths), final_states=False)


def test_one_document_is_the_default():
    inputs = make_inputs([150], initial=False)
    whole = run(selective_scan, inputs, None)
    for name, value in run(selective_scan, inputs, cu_seqlens_of([150])).items():
        assert_identical(name, value, whole[name])


def test_rows_may_be_strided():
    lengths = [5, 1, 70]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)
    whole = run(selective_scan, inputs, cu_seqlens)
    halves = torch.cat([inputs["u"], inputs["z"]], 1)
    columns = torch.cat([inputs["delta"], inputs["B"], inputs["C"]], 1)
    u, z = halves.chunk(2, 1)
    delta, B, C = columns.split([6, 4, 4], 1)
    strided = selective_scan(
        u, delta, inputs["A"], B, C, inputs["D"], z, inputs["delta_bias"], delta_softplus=True,
        cu_seqlens=cu_seqlens, initial_states=inputs["initial_states"],
    )  # fmt: skip
    assert_identical("out", whole["out"], strided)


@pytest.mark.parametrize("built_on_host", [True, False])
def test_a_schedule_changes_nothing(built_on_host):
    lengths = LENGTHS["mixed"]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)
    schedule = (
        build_schedule(cu_seqlens.cpu()).to(DEVICE) if built_on_host else build_schedule(cu_seqlens, sum(lengths))
    )
    without = run(selective_scan, inputs, cu_seqlens)
    for name, value in run(selective_scan, inputs, cu_seqlens, schedule=schedule).items():
        assert_identical(name, without[name], value)


def test_two_halves_joined_by_their_state_equal_the_whole():
    inputs = make_inputs([150], initial=False)
    whole, state = run(selective_scan, inputs, None), None
    outs = []
    for tokens in (slice(0, 77), slice(77, 150)):
        part = {k: v[tokens] if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}
        out, state = selective_scan(**part | {"initial_states": state}, delta_softplus=True, return_final_states=True)
        outs.append(out)
    assert_close("out", whole["out"], torch.cat(outs), 1e-6)
    assert_close("final_states", whole["final_states"], state, 1e-6)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("final_states", [False, True])
@on_cpu
def test_gradients_are_the_derivatives_of_the_outputs(initial, final_states):
    lengths = [1, 67, 3]
    inputs = make_inputs(lengths, 2, 4, dtype=torch.float64, initial=initial)
    names = [k for k, v in inputs.items() if v is not None]

    def outputs(*tensors):
        given = dict(zip(names, tensors, strict=True))
        return selective_scan(
            **given, delta_softplus=True, cu_seqlens=cu_seqlens_of(lengths), return_final_states=final_states
        )

    leaves = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


@on_cpu
def test_gradients_of_every_element_are_the_derivatives():
    lengths = [2, 5]
    inputs = make_inputs(lengths, 2, 4, dtype=torch.float64)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_states")

    def outputs(*tensors):
        given = dict(zip(names, tensors, strict=True))
        return selective_scan(**given, delta_softplus=True, cu_seqlens=cu_seqlens_of(lengths), return_final_states=True)

    assert torch.autograd.gradcheck(outputs, [inputs[name].requires_grad_() for name in names])


def test_only_the_final_states_may_have_a_gradient():
    inputs = make_inputs([70, 3])
    cu_seqlens = cu_seqlens_of([70, 3])
    gradients = []
    for function in (selective_scan, selective_scan_naive):
        leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
        _, state = function(**leaves, delta_softplus=True, cu_seqlens=cu_seqlens, return_final_states=True)
        gradients.append(torch.autograd.grad(state.square().sum(), [leaves[k] for k in ("u", "delta", "A", "B")]))
    for name, actual, wanted in zip(("du", "ddelta", "dA", "dB"), *gradients, strict=True):
        assert_close(name, wanted, actual, 5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [5, 64, 200])
def test_changing_a_document_leaves_the_others_bit_identical(channels, dtype):
    lengths = [5, 1, 130, 64, 70]
    inputs = make_inputs(lengths, channels, 16, dtype=dtype)
    before = run_permutable(selective_scan, inputs, lengths, range(5))
    changed = {k: v.clone() for k, v in inputs.items()}
    for name in ("u", "delta", "B", "C", "z"):
        changed[name][6:136] *= -3
    changed["initial_states"][2] += 1
    after = run_permutable(selective_scan, changed, lengths, range(5))
    assert_documents_identical(before, after, (0, 1, 3, 4))
    assert not torch.equal(before[2]["out"], after[2]["out"])


@pytest.mark.parametrize("channels", [5, 64, 200])
def test_a_documents_bits_do_not_depend_on_its_place(channels):
    lengths = [5, 1, 130, 64, 70, 300]
    inputs = make_inputs(lengths, channels, 16)
    assert_documents_identical(
        run_permutable(selective_scan, inputs, lengths, range(6)),
        run_permutable(selective_scan, inputs, lengths, (3, 5, 0, 4, 2, 1)),
        range(6),
    )


def test_a_documents_bits_do_not_depend_on_what_it_is_packed_with():
    lengths = [150, 64, 1, 333]
    inputs = make_inputs(lengths, 37, 16)
    together = run_permutable(selective_scan, inputs, lengths, range(4))
    for s in range(4):
        bos = sum(lengths[:s])
        alone = {k: v[bos : bos + lengths[s]] if v.shape[0] == sum(lengths) else v for k, v in inputs.items()}
        alone["initial_states"] = inputs["initial_states"][s : s + 1]
        assert_identical("out", together[s]["out"], selective_scan(**alone, delta_softplus=True))


def test_a_nan_in_one_document_does_not_reach_another():
    lengths = [5, 130, 64]
    inputs = make_inputs(lengths)
    before = run_permutable(selective_scan, inputs, lengths, range(3))
    for name in ("u", "delta", "B", "C", "z"):
        poisoned = inputs | {name: inputs[name].clone()}
        poisoned[name][70] = float("nan")
        after = run_permutable(selective_scan, poisoned, lengths, range(3))
        assert after[1]["out"].isnan().any()
        assert_documents_identical(before, after, (0, 2))


@on_cpu
def test_a_leak_between_documents_is_noticed(monkeypatch):
    """A reference that carries state over every boundary fails the isolation check."""
    lengths = [64, 192, 64, 70]
    inputs = make_inputs(lengths, 5, 16)
    forward, backward = reference.forward, reference.backward

    def one_document(segments):
        return dataclasses.replace(segments, cu_segments=segments.cu_segments[[0, -1]])

    def leaky_forward(inputs, segments, options):
        results = forward(inputs._replace(initial_states=None), one_document(segments), options)
        return results._replace(final_states=results.final_states.expand(4, -1, -1).contiguous())

    def leaky_backward(dout, dfinal, inputs, starts, segments, options):
        grads = backward(dout, dfinal[-1:], inputs, starts, one_document(segments), options)
        return grads._replace(dinitial_states=grads.dinitial_states.expand(4, -1, -1).contiguous())

    monkeypatch.setattr(reference, "forward", leaky_forward)
    monkeypatch.setattr(reference, "backward", leaky_backward)
    before = run_permutable(selective_scan, inputs, lengths, range(4))
    changed = {k: v.clone() for k, v in inputs.items()}
    changed["u"][64:256] *= -3
    with pytest.raises(AssertionError, match="elements differ"):
        assert_documents_identical(before, run_permutable(selective_scan, changed, lengths, range(4)), (0, 2, 3))


def test_the_same_input_gives_the_same_bits():
    lengths = LENGTHS["mixed"]
    inputs = make_inputs(lengths, 33, 16, dtype=torch.bfloat16)
    first, second = (run(selective_scan, inputs, cu_seqlens_of(lengths)) for _ in range(2))
    for name, value in first.items():
        assert_identical(name, value, second[name])


@pytest.mark.parametrize("full", [True, False])
def test_registered_as_torch_requires(full):
    lengths = [70, 3]
    inputs = make_inputs(lengths, 6, 4, 2, skip=full, gate=full, bias=full, initial=full)
    arguments = [v if v is None else v.requires_grad_() for v in inputs.values()]
    cu_seqlens = cu_seqlens_of(lengths)
    documents = flat_documents(inputs["u"], cu_seqlens, build_schedule(cu_seqlens) if full else None)
    torch.library.opcheck(SELECTIVE_SCAN.registered_forward, (*arguments, *documents, True, full, False))


@pytest.mark.parametrize("with_schedule", [True, False])
def test_compiles_without_a_graph_break(with_schedule):
    lengths = [70, 3]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)
    options = {"schedule": build_schedule(cu_seqlens)} if with_schedule else {}
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    wanted = run(selective_scan, inputs, cu_seqlens)
    for name, value in run(compiled, inputs, cu_seqlens, **options).items():
        assert_identical(name, wanted[name], value)


def test_checkpointing_recomputes_the_same():
    lengths = [70, 3]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)

    def checkpointed(**arguments):
        return torch.utils.checkpoint.checkpoint(selective_scan, **arguments, use_reentrant=False)

    wanted = run(selective_scan, inputs, cu_seqlens)
    for name, value in run(checkpointed, inputs, cu_seqlens).items():
        assert_identical(name, wanted[name], value)


def test_saves_its_inputs_and_the_states_at_segment_starts_only():
    lengths = [640] * 4
    inputs = make_inputs(lengths, 64, 16, dtype=torch.bfloat16, initial=False)
    leaves = {k: v if v is None else v.requires_grad_() for k, v in inputs.items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        selective_scan(**leaves, delta_softplus=True, cu_seqlens=cu_seqlens_of(lengths))
    given = {v.data_ptr() for v in leaves.values() if v is not None}
    extra = sum(t.numel() * t.element_size() for t in saved if t.data_ptr() not in given)
    assert extra <= 1.2 * 4 * 16 / 64 * sum(lengths) * 64


@pytest.mark.parametrize("gate", [True, False])
def test_the_backward_gives_the_output_again_where_asked(gate):
    assert_backward_gives_the_output_again([70, 3], gate=gate)


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    inputs = make_inputs([70], initial=False)
    with FlopCounterMode(display=False) as counter:
        selective_scan(**{k: v if v is None else v.requires_grad_() for k, v in inputs.items()}).sum().backward()
    assert counter.get_total_flops() == 21 * 70 * 6 * 4
