"""Operators go through torch's dispatcher where somebody watches it, and past it where nobody does."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from packmamba_kernels import causal_conv1d, selective_scan
from packmamba_kernels.causal_conv1d.inputs import ConvInputs, ConvOptions
from packmamba_kernels.causal_conv1d.op import CAUSAL_CONV1D
from packmamba_kernels.runtime import dispatch as _dispatch
from packmamba_kernels.selective_scan.inputs import ScanInputs, ScanOptions
from packmamba_kernels.selective_scan.op import SELECTIVE_SCAN
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.selective_scan.scan_cases import cu_seqlens_of, make_inputs, run
from tests.support import DEVICE, assert_identical


class Watcher(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **kwargs or {})


class Subclass(torch.Tensor):
    pass


def conv_inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (73, 6), "weight": (6, 4), "bias": (6,), "initial_states": (2, 6, 3)}
    return {name: torch.randn(shape, generator=generator).to(DEVICE) for name, shape in shapes.items()}


def run_conv(inputs, **options):
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    out, final = causal_conv1d(
        **leaves, activation="silu", cu_seqlens=cu_seqlens_of([70, 3]), return_final_states=True, **options
    )
    gradients = torch.autograd.grad(out.square().sum() + final.sum(), list(leaves.values()))
    return {"out": out, "final": final} | dict(zip(leaves, gradients, strict=True))


def run_scan(inputs):
    return run(selective_scan, inputs, cu_seqlens_of([70, 3]))


CASES = {"causal_conv1d": (run_conv, conv_inputs), "selective_scan": (run_scan, lambda: make_inputs([70, 3]))}
OPERATORS = {"causal_conv1d": CAUSAL_CONV1D, "selective_scan": SELECTIVE_SCAN}
each_operator = pytest.mark.parametrize("name", CASES)


@each_operator
@pytest.mark.parametrize("autocast", [False, True])
def test_a_mode_sees_the_operators_and_changes_nothing(name, autocast):
    function, inputs = CASES[name][0], CASES[name][1]()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        unwatched = function(inputs)
        with Watcher() as watcher:
            watched = function(inputs)
    assert {f"packmamba.{name}.default", f"packmamba.{name}_backward.default"} <= set(watcher.seen)
    for key, value in unwatched.items():
        assert_identical(key, value, watched[key])


@each_operator
def test_what_nobody_watches_goes_past_the_dispatcher(name, monkeypatch):
    function, inputs = CASES[name][0], CASES[name][1]()
    operator = OPERATORS[name]

    def refuse(*arguments):
        raise AssertionError("dispatched")

    for registered in ("registered_forward", "registered_backward"):
        monkeypatch.setattr(operator, registered, refuse)
    function(inputs)
    with Watcher(), pytest.raises(AssertionError, match="dispatched"):
        function(inputs)


@each_operator
def test_a_backward_may_be_watched_alone(name):
    inputs = CASES[name][1]()
    leaf = next(iter(inputs.values())).requires_grad_()
    options = {"cu_seqlens": cu_seqlens_of([70, 3])}
    out = {"causal_conv1d": causal_conv1d, "selective_scan": selective_scan}[name](**inputs, **options)
    with Watcher() as watcher:
        torch.autograd.grad(out.sum(), leaf)
    assert f"packmamba.{name}_backward.default" in watcher.seen


@each_operator
def test_gradients_of_gradients_are_refused_not_wrong(name):
    inputs = CASES[name][1]()
    leaf = next(iter(inputs.values())).requires_grad_()
    function = {"causal_conv1d": causal_conv1d, "selective_scan": selective_scan}[name]
    out = function(**inputs, cu_seqlens=cu_seqlens_of([70, 3]))
    (gradient,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


def test_fake_tensors_give_fake_results():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        inputs = {
            name: mode.from_tensor(value)
            for name, value in make_inputs([7], initial=False).items()
            if value is not None
        }
    out = selective_scan(**inputs)  # outside the mode
    assert type(out) is type(inputs["u"])
    assert out.shape == (7, 6)


WATCHING = {
    "nobody": (nullcontext, True),
    "a dispatch mode": (Watcher, False),
    "recorded gradients": (torch.enable_grad, True),
}


@pytest.mark.parametrize(("context", "bypassed"), WATCHING.values(), ids=WATCHING)
def test_what_counts_as_watching(context, bypassed):
    with context():
        assert _dispatch.may_bypass_dispatcher([torch.ones(1), None]) == bypassed


def test_subclasses_and_transforms_count_as_watching():
    assert _dispatch.may_bypass_dispatcher([torch.nn.Parameter(torch.ones(1))])
    assert not _dispatch.may_bypass_dispatcher([torch.ones(1), torch.ones(1).as_subclass(Subclass)])
    assert not _dispatch.may_bypass_dispatcher([[1.0]])
    seen = []
    torch.func.grad(lambda x: (seen.append(_dispatch.may_bypass_dispatcher([torch.ones(1)])), x)[1])(torch.tensor(1.0))
    torch.jit.trace(
        lambda x: (seen.append(_dispatch.may_bypass_dispatcher([torch.ones(1)])), x)[1],
        torch.ones(1),
        check_trace=False,
    )
    assert len(seen) == 2
    assert not any(seen)


def test_only_a_call_that_records_no_gradient_runs_the_function_itself(monkeypatch):
    inputs = ScanInputs(**make_inputs([70, 3]))
    documents = SELECTIVE_SCAN.documents(inputs.u, cu_seqlens_of([70, 3]), None)
    registered, dispatched = SELECTIVE_SCAN.registered_forward, []
    monkeypatch.setattr(SELECTIVE_SCAN, "registered_forward", lambda *flat: dispatched.append(1) or registered(*flat))
    with torch.no_grad():
        wanted = SELECTIVE_SCAN.forward(inputs, documents, ScanOptions(delta_softplus=True))
    assert not dispatched
    with torch.enable_grad():
        results = SELECTIVE_SCAN.forward(inputs, documents, ScanOptions(delta_softplus=True))
    assert dispatched
    assert_identical("out", wanted.out, results.out)


@each_operator
def test_the_switch_sends_every_call_through_the_dispatcher_and_changes_nothing(name, monkeypatch):
    function, inputs = CASES[name][0], CASES[name][1]()
    wanted = function(inputs)
    dispatched = []
    for attribute in ("registered_forward", "registered_backward"):
        registered = getattr(OPERATORS[name], attribute)
        monkeypatch.setattr(
            OPERATORS[name],
            attribute,
            lambda *flat, registered=registered: dispatched.append(1) or registered(*flat),
        )
    function(inputs)
    assert not dispatched
    monkeypatch.setattr(_dispatch, "ALWAYS_DISPATCH", True)
    actual = function(inputs)
    assert len(dispatched) == 2
    for key, value in wanted.items():
        assert_identical(key, value, actual[key])


@pytest.mark.parametrize("dispatched", [False, True])
def test_gradients_may_be_written_beside_each_other(dispatched, monkeypatch):
    monkeypatch.setattr(_dispatch, "ALWAYS_DISPATCH", dispatched)
    inputs, cu_seqlens = ScanInputs(**make_inputs([70, 3])), cu_seqlens_of([70, 3])
    documents, options = SELECTIVE_SCAN.documents(inputs.u, cu_seqlens, None), ScanOptions(delta_softplus=True)
    convolution, conv_options = ConvInputs(**conv_inputs()), ConvOptions("silu")
    conv_documents = CAUSAL_CONV1D.documents(convolution.x, cu_seqlens, None)
    with torch.no_grad():
        out, _, *kept = SELECTIVE_SCAN.forward(inputs, documents, options)
        both = torch.full((73, 13), float("nan"), device=DEVICE)  # 6 and 6 channels, one between
        into = {"dz": both[:, 7:]}
        wanted = SELECTIVE_SCAN.backward(out, None, inputs, kept, documents, options)
        actual = SELECTIVE_SCAN.backward(out, None, inputs, kept, documents, options, into)
        assert actual.dz is into["dz"]
        for name, value in wanted._asdict().items():
            if value is not None and value.numel():
                assert_identical(name, value, getattr(actual, name))
        into = {"dx": both[:, :6]}
        wanted = CAUSAL_CONV1D.backward(out, None, convolution, (), conv_documents, conv_options)
        actual = CAUSAL_CONV1D.backward(out, None, convolution, (), conv_documents, conv_options, into)
        assert actual.dx is into["dx"]
        for name, value in wanted._asdict().items():
            assert_identical(name, value, getattr(actual, name))
    assert both[:, 6].isnan().all()
