"""Operators go through torch's dispatcher where somebody watches it, and past it where nobody does."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from packmamba_kernels import causal_conv1d, selective_scan
from packmamba_kernels.causal_conv1d import op as conv_op
from packmamba_kernels.runtime import dispatch as _dispatch
from packmamba_kernels.selective_scan import op as scan_op
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
    op = {"causal_conv1d": conv_op, "selective_scan": scan_op}[name]

    def refuse(*arguments):
        raise AssertionError("dispatched")

    for registered in (f"_{name}", f"_{name}_backward"):
        monkeypatch.setattr(op, registered, refuse)
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


@pytest.mark.parametrize(("context", "unobserved"), WATCHING.values(), ids=WATCHING)
def test_what_counts_as_watching(context, unobserved):
    with context():
        assert _dispatch.unobserved([torch.ones(1), None]) == unobserved


def test_subclasses_and_transforms_count_as_watching():
    assert _dispatch.unobserved([torch.nn.Parameter(torch.ones(1))])
    assert not _dispatch.unobserved([torch.ones(1), torch.ones(1).as_subclass(Subclass)])
    assert not _dispatch.unobserved([[1.0]])
    seen = []
    torch.func.grad(lambda x: (seen.append(_dispatch.unobserved([torch.ones(1)])), x)[1])(torch.tensor(1.0))
    torch.jit.trace(
        lambda x: (seen.append(_dispatch.unobserved([torch.ones(1)])), x)[1], torch.ones(1), check_trace=False
    )
    assert len(seen) == 2
    assert not any(seen)


def test_only_what_records_no_gradient_runs_directly():
    with torch.no_grad():
        assert _dispatch.direct([torch.ones(1)])
    with torch.enable_grad():
        assert not _dispatch.direct([torch.ones(1)])
