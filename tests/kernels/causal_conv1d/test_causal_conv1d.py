"""The packed causal convolution against its definition, and the guarantee that documents never see each other.

On the CPU this tests the reference; with TRITON_INTERPRET=1 or on a GPU, as test_interpreter.py runs it, the Triton
kernels.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from packmamba_kernels import causal_conv1d
from packmamba_kernels.causal_conv1d.naive import causal_conv1d_naive
from packmamba_kernels.causal_conv1d.op import CAUSAL_CONV1D
from packmamba_kernels.runtime.triton_glue import INTERPRET
from packmamba_kernels.schedule import build_schedule
from torch.utils.flop_counter import FlopCounterMode

from tests.support import DEVICE, LENGTHS, assert_close, assert_identical, skip_without_memory

GRADIENT_NAMES = ("x", "weight", "bias", "initial_states")
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 if INTERPRET else 5e-3}
"""RMS error ratio of what has the input's dtype; sums over tokens are fp32 whatever it is. Triton's interpreter rounds
fp32 to bf16 towards zero: up to 2^-7."""


def cu_seqlens_of(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def make_inputs(lengths, channels=5, width=4, dtype=torch.float32, seed=0, *, bias=True, initial=True):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    weight_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": normal(sum(lengths), channels),
        "weight": normal(channels, width, dtype=weight_dtype),
        "bias": normal(channels, dtype=weight_dtype) if bias else None,
        "initial_states": normal(len(lengths), channels, width - 1) if initial else None,
    }


def run(function, inputs, cu_seqlens, activation="silu", final_states=True, dout_dtype=None):
    """Outputs and gradients by name, for a random output gradient that `dout_dtype` (else the output's) can hold."""
    leaves = {k: None if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()}
    result = function(
        leaves["x"],
        leaves["weight"],
        leaves["bias"],
        activation=activation,
        cu_seqlens=cu_seqlens,
        initial_states=leaves["initial_states"],
        return_final_states=final_states,
    )
    outputs = dict(zip(("out", "final_states"), result if final_states else (result,), strict=False))
    generator = torch.Generator().manual_seed(1)
    douts = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs.values()]
    douts = [dout.to(dout_dtype or o.dtype).to(o) for dout, o in zip(douts, outputs.values(), strict=True)]
    wanted = {k: v for k, v in leaves.items() if v is not None}
    gradients = torch.autograd.grad(list(outputs.values()), list(wanted.values()), douts)
    detached = {k: v.detach() for k, v in outputs.items()}
    return detached | {f"d{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}


def assert_same_as_definition(inputs, cu_seqlens, **flags):
    """Everything the operator returns, against the definition in fp64."""
    exact = {k: None if v is None else v.double() for k, v in inputs.items()}
    reference = run(causal_conv1d_naive, exact, cu_seqlens, dout_dtype=inputs["x"].dtype, **flags)
    actual = run(causal_conv1d, inputs, cu_seqlens, **flags)
    assert actual.keys() == reference.keys()
    for name, value in actual.items():
        expected = {"out": "x", "final_states": "x"}.get(name, name[1:])
        assert value.dtype == inputs[expected].dtype, name
        if reference[name].count_nonzero() or value.count_nonzero():
            assert_close(name, reference[name], value, TOLERANCE[value.dtype] if value.numel() > 3 else 1e-2)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_the_definition(lengths):
    assert_same_as_definition(make_inputs(lengths), cu_seqlens_of(lengths))


def test_filters_sum_over_more_segments_than_a_program_adds_at_once():
    lengths = [1, 2, 5] * 12
    for bias in (True, False):
        assert_same_as_definition(make_inputs(lengths, 67, bias=bias), cu_seqlens_of(lengths))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["1", "65-64-63"])
def test_equals_the_definition_in_16_bits(name, dtype):
    lengths = LENGTHS[name]
    assert_same_as_definition(make_inputs(lengths, dtype=dtype), cu_seqlens_of(lengths))


@settings(
    max_examples=8 if INTERPRET else 40,
    phases=[Phase.explicit, Phase.generate] if INTERPRET else tuple(Phase),  # shrinking would take minutes
)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    channels=st.integers(1, 9),
    width=st.integers(2, 8),
    bias=st.booleans(),
    initial=st.booleans(),
    final_states=st.booleans(),
    activation=st.sampled_from([None, "silu"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**20),
)
def test_equals_the_definition_for_random_packings(
    lengths, channels, width, bias, initial, final_states, activation, dtype, seed
):
    inputs = make_inputs(lengths, channels, width, dtype, seed, bias=bias, initial=initial)
    assert_same_as_definition(inputs, cu_seqlens_of(lengths), activation=activation, final_states=final_states)


def test_one_document_is_the_default():
    inputs = make_inputs([50], initial=False)
    whole = run(causal_conv1d, inputs, None)
    assert_close("out", run(causal_conv1d_naive, inputs, None)["out"], whole["out"], 1e-6)
    assert_identical("out", run(causal_conv1d, inputs, cu_seqlens_of([50]))["out"], whole["out"])


def test_rows_may_be_strided():
    lengths = [5, 1, 70]
    inputs = make_inputs(lengths)
    both_halves = torch.randn(sum(lengths), 10, device=DEVICE)
    both_halves[:, 5:] = inputs["x"]
    arguments = (inputs["weight"], inputs["bias"])
    strided = causal_conv1d(both_halves[:, 5:], *arguments, cu_seqlens=cu_seqlens_of(lengths))
    assert_identical("out", causal_conv1d(inputs["x"], *arguments, cu_seqlens=cu_seqlens_of(lengths)), strided)


def test_offsets_beyond_two_to_the_31_are_right():
    """Rows 2^27 elements apart, in memory that is reserved but never touched between them."""
    lengths, stride = [17, 3], 2**27
    inputs = make_inputs(lengths, dtype=torch.bfloat16)
    far_apart = torch.empty(19 * stride + 5, dtype=torch.bfloat16, device=DEVICE).as_strided((20, 5), (stride, 1))
    far_apart.copy_(inputs["x"])
    flags = {
        "activation": "silu",
        "cu_seqlens": cu_seqlens_of(lengths),
        "initial_states": inputs["initial_states"],
        "return_final_states": True,
    }
    near = causal_conv1d(inputs["x"], inputs["weight"], inputs["bias"], **flags)
    far = causal_conv1d(far_apart, inputs["weight"], inputs["bias"], **flags)
    for name, expected, actual in zip(("out", "final_states"), near, far, strict=True):
        assert_identical(name, expected, actual)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRET, reason="too large for the interpreter")
def test_more_than_two_to_the_31_elements():
    skip_without_memory(22)  # x, out, the gradients of both and the normal numbers x is made from: 4 GiB each
    channels, lengths = 4096, [2**31 // 4096, 100]
    x = torch.randn(sum(lengths), channels, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(channels, 4, device="cuda")
    cu_seqlens = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32, device="cuda")
    packed = causal_conv1d(x, weight, activation="silu", cu_seqlens=cu_seqlens)
    alone_x = x.detach()[-100:].clone().requires_grad_()
    alone = causal_conv1d(alone_x, weight, activation="silu")
    assert_identical("out", alone.detach(), packed.detach()[-100:])
    (dx,) = torch.autograd.grad(packed, x, torch.ones_like(packed))
    (alone_dx,) = torch.autograd.grad(alone, alone_x, torch.ones_like(alone))
    assert_identical("dx", alone_dx, dx[-100:])


def test_a_schedule_changes_nothing():
    lengths = LENGTHS["mixed"]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)
    without = causal_conv1d(inputs["x"], inputs["weight"], cu_seqlens=cu_seqlens)
    schedule = build_schedule(cu_seqlens.cpu()).to(DEVICE)
    assert_identical(
        "out", without, causal_conv1d(inputs["x"], inputs["weight"], cu_seqlens=cu_seqlens, schedule=schedule)
    )


def test_two_halves_joined_by_their_state_equal_the_whole():
    inputs = make_inputs([90], initial=False)
    parameters = (inputs["weight"], inputs["bias"])
    whole = causal_conv1d(inputs["x"], *parameters, activation="silu")
    first, state = causal_conv1d(inputs["x"][:2], *parameters, activation="silu", return_final_states=True)
    second = causal_conv1d(inputs["x"][2:], *parameters, activation="silu", initial_states=state)
    assert_close("out", whole, torch.cat([first, second]), 1e-6)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width", [2, 4])
def test_gradients_are_the_derivatives_of_the_outputs(width, activation, initial):
    lengths = [1, 2, 5, 3]
    inputs = make_inputs(lengths, 2, width, torch.float64, initial=initial)
    leaves = [v.requires_grad_() for v in inputs.values() if v is not None]

    def outputs(x, weight, bias, initial_states=None):
        return causal_conv1d(
            x,
            weight,
            bias,
            activation=activation,
            cu_seqlens=cu_seqlens_of(lengths),
            initial_states=initial_states,
            return_final_states=True,
        )

    torch.autograd.gradcheck(outputs, leaves, fast_mode=INTERPRET)


# --- documents never see each other ---------------------------------------------------------------------------------


def per_document(results, lengths):
    """The parts of every result that belong to one document."""
    names = [n for n in ("out", "final_states", "dx", "dinitial_states") if n in results]
    rows = {n: results[n].split(lengths) if n in ("out", "dx") else results[n].split(1) for n in names}
    return [{n: rows[n][i] for n in names} for i in range(len(lengths))]


def assert_isolated(function, lengths, inputs, replace):
    """Replacing each document's inputs by `replace(its rows)` leaves every other document's bits alone."""
    cu_seqlens = cu_seqlens_of(lengths)
    before = per_document(run(function, inputs, cu_seqlens), lengths)
    for i in range(len(lengths)):
        changed = {k: None if v is None else v.clone() for k, v in inputs.items()}
        rows = slice(int(cu_seqlens[i]), int(cu_seqlens[i + 1]))
        changed["x"][rows] = replace(changed["x"][rows])
        if changed["initial_states"] is not None:
            changed["initial_states"][i] = replace(changed["initial_states"][i])
        after = per_document(run(function, changed, cu_seqlens), lengths)
        for j in range(len(lengths)):
            if j != i:
                for name in before[j]:
                    assert_identical(f"{name} of document {j} after changing {i}", before[j][name], after[j][name])
        assert not torch.equal(before[i]["out"], after[i]["out"]), "the change had no effect: nothing was tested"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("lengths", [[1, 3, 4, 2], [65, 1, 64]], ids=str)
def test_changing_a_document_leaves_every_other_bit_identical(lengths, initial, dtype):
    assert_isolated(causal_conv1d, lengths, make_inputs(lengths, dtype=dtype, initial=initial), lambda rows: rows + 1)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("lengths", [[1, 3, 4, 2], [65, 1, 64]], ids=str)
def test_a_nan_stays_in_its_document(lengths, initial):
    assert_isolated(causal_conv1d, lengths, make_inputs(lengths, initial=initial), lambda rows: rows * float("nan"))


def test_the_isolation_check_sees_a_leak():
    def leaky(x, weight, bias, *, cu_seqlens, initial_states, **flags):
        joined = cu_seqlens[[0, 1, 3]]  # documents 1 and 2
        out, final = causal_conv1d(x, weight, bias, cu_seqlens=joined, initial_states=initial_states[:2], **flags)
        return out, torch.cat([final, initial_states[2:] * 2])

    lengths = [5, 6, 7]
    with pytest.raises(AssertionError, match="after changing 1"):
        assert_isolated(leaky, lengths, make_inputs(lengths), lambda rows: rows + 1)


@pytest.mark.parametrize("channels", [5, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bits_of_a_document_do_not_depend_on_its_place(channels, dtype):
    lengths = [66, 1, 3, 70]
    inputs = make_inputs(lengths, channels, dtype=dtype)
    packed = per_document(run(causal_conv1d, inputs, cu_seqlens_of(lengths)), lengths)
    order = [2, 0, 3, 1]
    rows = inputs["x"].split(lengths)
    shuffled = inputs | {
        "x": torch.cat([rows[i] for i in order]),
        "initial_states": inputs["initial_states"][order],
    }
    moved_lengths = [lengths[i] for i in order]
    moved = per_document(run(causal_conv1d, shuffled, cu_seqlens_of(moved_lengths)), moved_lengths)
    for place, i in enumerate(order):
        for name in ("out", "final_states"):
            assert_identical(f"{name} of document {i}", packed[i][name], moved[place][name])
        alone_inputs = inputs | {"x": rows[i], "initial_states": inputs["initial_states"][i : i + 1]}
        alone = run(causal_conv1d, alone_inputs, cu_seqlens_of(lengths[i : i + 1]))
        assert_identical(f"out of document {i} alone", alone["out"], packed[i]["out"])


def test_every_output_element_is_written(monkeypatch):
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poisoned(new_empty(*a, **k)))
    lengths = [1, 66, 3]
    for name, value in run(causal_conv1d, make_inputs(lengths, 130), cu_seqlens_of(lengths)).items():
        assert torch.isfinite(value).all(), name


def poisoned(tensor):
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor


def test_the_same_input_gives_the_same_bits():
    lengths = LENGTHS["mixed"]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)
    first, second = run(causal_conv1d, inputs, cu_seqlens), run(causal_conv1d, inputs, cu_seqlens)
    for name, value in first.items():
        assert_identical(name, value, second[name])


# --- a torch operator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final_states", [False, True])
@pytest.mark.parametrize(("optional", "with_schedule"), [(False, False), (True, True)])
def test_passes_opcheck(optional, with_schedule, final_states):
    inputs = make_inputs([4, 2], bias=optional, initial=optional)
    arguments = [None if v is None else v.requires_grad_() for v in inputs.values()]
    cu_seqlens = cu_seqlens_of([4, 2])
    schedule = build_schedule(cu_seqlens.cpu()).to(DEVICE) if with_schedule else None
    offsets = list(CAUSAL_CONV1D.documents(inputs["x"], cu_seqlens, schedule).offsets)
    documents = (cu_seqlens, None if schedule is None else schedule.buffer, offsets)
    torch.library.opcheck(
        torch.ops.packmamba.causal_conv1d.default,
        (*arguments, *documents, "silu", final_states),
    )


def test_compiles_without_graph_breaks():
    lengths = [4, 9, 2]
    inputs, cu_seqlens = make_inputs(lengths), cu_seqlens_of(lengths)
    compiled = torch.compile(causal_conv1d, fullgraph=True, backend="aot_eager")
    eager = run(causal_conv1d, inputs, cu_seqlens)
    for name, value in run(compiled, inputs, cu_seqlens).items():
        assert_identical(name, eager[name], value)


def test_floating_point_operations_are_counted():
    inputs = make_inputs([10, 5], channels=6, width=4)
    with FlopCounterMode(display=False) as counter:
        run(causal_conv1d, inputs, cu_seqlens_of([10, 5]))
    assert counter.get_total_flops() == 3 * (2 * 15 * 6 * 4)  # out; the gradients of x and of the filters


def test_saves_nothing_but_its_arguments():
    inputs = {k: v.requires_grad_() for k, v in make_inputs([4, 9, 2]).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        causal_conv1d(inputs["x"], inputs["weight"], inputs["bias"], activation="silu", cu_seqlens=cu_seqlens_of([15]))
    assert sum(t.numel() for t in saved if t.ndim == 2 and t.shape[0] == 15) == inputs["x"].numel()
