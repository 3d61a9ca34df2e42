"""The gated RMS normalisation against its definition, against code that others wrote, and that tokens never meet.

On the CPU this tests the reference; with TRITON_INTERPRET=1 or on a GPU, as test_interpreter.py runs it, the Triton
kernels.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from packmamba_kernels import gated_rms_norm
from packmamba_kernels.gated_rms_norm.naive import gated_rms_norm_naive
from packmamba_kernels.runtime.triton_glue import INTERPRET

from tests.support import DEVICE, assert_close, assert_identical

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 if INTERPRET else 5e-3}
"""RMS error ratio of what has the input's dtype; sums are fp32 whatever it is. Triton's interpreter rounds fp32 to bf16
towards zero: up to 2^-7."""


def make_inputs(tokens=7, channels=12, dtype=torch.float32, seed=0, *, gate=True):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    weight_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "y": normal(tokens, channels),
        "z": normal(tokens, channels) if gate else None,
        "weight": normal(channels, dtype=weight_dtype),
    }


def run(function, inputs, dout_dtype=None, **options):
    """out and gradients by name, for a random output gradient that `dout_dtype` (else the output's) can hold."""
    leaves = {k: None if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()}
    out = function(**leaves, **options)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dout = dout.to(dout_dtype or out.dtype).to(out)
    wanted = {k: v for k, v in leaves.items() if v is not None}
    gradients = torch.autograd.grad(out, list(wanted.values()), dout)
    return {"out": out.detach()} | {f"d{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}


def assert_same_as_definition(inputs, **options):
    exact = {k: None if v is None else v.double() for k, v in inputs.items()}
    reference = run(gated_rms_norm_naive, exact, dout_dtype=inputs["y"].dtype, **options)
    actual = run(gated_rms_norm, inputs, **options)
    assert actual.keys() == reference.keys()
    for name, value in actual.items():
        assert value.dtype == inputs["y" if name == "out" else name[1:]].dtype, name
        assert_close(name, reference[name], value, TOLERANCE[value.dtype])


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("channels", "group_size"), [(12, None), (12, 4), (96, 32), (300, 100), (64, 64), (5, 5)])
def test_equals_the_definition(channels, group_size, gate, norm_before_gate):
    inputs = make_inputs(70, channels, gate=gate)
    assert_same_as_definition(inputs, group_size=group_size, norm_before_gate=norm_before_gate)


@settings(
    max_examples=8 if INTERPRET else 40,
    phases=[Phase.explicit, Phase.generate] if INTERPRET else tuple(Phase),  # shrinking would take minutes
)
@given(
    tokens=st.integers(1, 40),
    groups=st.integers(1, 4),
    group_size=st.integers(2, 70),  # of one channel, the gradient of y is all but zero
    gate=st.booleans(),
    norm_before_gate=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**20),
)
def test_equals_the_definition_for_random_sizes(tokens, groups, group_size, gate, norm_before_gate, dtype, seed):
    inputs = make_inputs(tokens, groups * group_size, dtype, seed, gate=gate)
    assert_same_as_definition(inputs, group_size=group_size, norm_before_gate=norm_before_gate, eps=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_group_may_be_as_large_as_a_program_can_hold(dtype):
    assert_same_as_definition(make_inputs(3, 8192, dtype))


def test_the_weight_sums_over_more_tokens_than_programs_have_rows():
    assert_same_as_definition(make_inputs(2300, 2048 if not INTERPRET else 8, gate=False))


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_gradients_are_the_derivatives_of_the_output(gate, norm_before_gate):
    inputs = make_inputs(3, 4, torch.float64, gate=gate)
    leaves = [None if v is None else v.requires_grad_() for v in inputs.values()]

    def function(*tensors):
        return gated_rms_norm(*tensors, group_size=2, norm_before_gate=norm_before_gate)

    assert torch.autograd.gradcheck(function, leaves, nondet_tol=0.0)


@pytest.mark.parametrize(("name", "group_size"), [("mamba2.MambaRMSNormGated", 32), ("zamba2.Zamba2RMSNormGated", 8)])
def test_equals_the_module_of_transformers(name, group_size):
    """Which normalises v = y · silu(z), in groups for Zamba2 and Nemotron-H."""
    pytest.importorskip("transformers")
    family, kind = name.split(".")
    module = __import__(f"transformers.models.{family}.modeling_{family}", fromlist=[kind])
    inputs = {k: v.cpu() for k, v in make_inputs(9, 32).items()}
    theirs = getattr(module, kind)(32, group_size, eps=1e-5)
    theirs.weight.data = inputs["weight"]
    out = gated_rms_norm(**{k: v.to(DEVICE) for k, v in inputs.items()}, group_size=group_size)
    assert_close("out", theirs(inputs["y"], inputs["z"]).detach(), out.cpu(), 1e-6)


def test_a_norm_without_a_gate_is_that_of_torch():
    inputs = make_inputs(9, 32, gate=False)
    expected = torch.nn.functional.rms_norm(inputs["y"], (32,), inputs["weight"], 1e-5)
    assert_close("out", expected, gated_rms_norm(inputs["y"], None, inputs["weight"]), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group_size", [None, 33])
def test_the_bits_of_a_token_depend_on_nothing_else(group_size, dtype):
    inputs = make_inputs(50, 99, dtype)
    together = run(gated_rms_norm, inputs, group_size=group_size)
    douts = torch.randn(50, 99, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE, dtype)
    for rows in (slice(0, 1), slice(7, 8), slice(31, 50)):
        leaves = [inputs[name][rows].clone().requires_grad_() for name in ("y", "z")]
        out = gated_rms_norm(*leaves, inputs["weight"], group_size=group_size)
        assert_identical("out", together["out"][rows], out.detach())
        for name, alone in zip(("dy", "dz"), torch.autograd.grad(out, leaves, douts[rows]), strict=True):
            assert_identical(name, together[name][rows], alone)


@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_a_nan_stays_in_its_token_and_group(norm_before_gate):
    inputs = make_inputs(20, 12)
    options = {"group_size": 4, "norm_before_gate": norm_before_gate}
    clean = run(gated_rms_norm, inputs, **options)
    inputs["y"][7, 5] = float("nan")
    poisoned = run(gated_rms_norm, inputs, **options)
    others = torch.ones(20, 12, dtype=torch.bool, device=DEVICE)
    others[7, 4:8] = False
    assert poisoned["out"][7, 4:8].isnan().all()
    for name in ("out", "dy", "dz"):
        assert_identical(name, clean[name][others], poisoned[name][others])


def test_rows_may_be_strided():
    inputs = make_inputs(9, 12)
    projection = torch.randn(9, 40, device=DEVICE)
    projection[:, 3:15], projection[:, 20:32] = inputs["z"], inputs["y"]
    strided = inputs | {"y": projection[:, 20:32], "z": projection[:, 3:15]}
    expected = gated_rms_norm(**inputs)
    assert_identical("out", expected, gated_rms_norm(**strided))
    leaf = projection.requires_grad_()
    gated_rms_norm(leaf[:, 20:32], leaf[:, 3:15], inputs["weight"]).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[:, 3:15].isfinite().all()


def test_the_same_input_gives_the_same_bits():
    inputs = make_inputs(70, 96)
    first, second = run(gated_rms_norm, inputs), run(gated_rms_norm, inputs)
    for name, value in first.items():
        assert_identical(name, value, second[name])


# --- a torch operator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [False, True])
def test_passes_opcheck(gate):
    leaves = [None if v is None else v.requires_grad_() for v in make_inputs(5, 8, gate=gate).values()]
    torch.library.opcheck(torch.ops.packmamba.gated_rms_norm.default, (*leaves, 1e-5, 4, False))


@pytest.mark.parametrize("gate", [False, True])
def test_compiles_without_graph_breaks(gate):
    inputs = make_inputs(9, 12, gate=gate)
    compiled = torch.compile(gated_rms_norm, fullgraph=True, backend="aot_eager")
    eager = run(gated_rms_norm, inputs)
    for name, value in run(compiled, inputs).items():
        assert_identical(name, eager[name], value)


def test_differentiating_twice_is_refused():
    inputs = {k: v.requires_grad_() for k, v in make_inputs(4, 8).items()}
    out = gated_rms_norm(**inputs)
    (dy,) = torch.autograd.grad(out.sum(), inputs["y"], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(dy.sum(), inputs["y"])


def test_saves_nothing_but_its_arguments():
    inputs = {k: v.requires_grad_() for k, v in make_inputs(15, 8).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        gated_rms_norm(**inputs)
    assert sorted(t.data_ptr() for t in saved) == sorted(t.data_ptr() for t in inputs.values())
