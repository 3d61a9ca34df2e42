"""Calls with one signature launch what Triton would have chosen for each of them. Nothing is compiled or launched."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from packmamba_kernels import causal_conv1d, checks, selective_scan
from packmamba_kernels.runtime import launching as launcher
from packmamba_kernels.runtime import triton_glue as _triton
from packmamba_kernels.runtime.launching import CompiledKernels, compiled_for

from packmamba.packing import Packing
from tests.support import DEVICE

pytestmark = pytest.mark.skipif(_triton.INTERPRET or DEVICE != "cpu", reason="of Triton's choice, without a GPU")

LENGTHS = ([70, 3], [16] * 16, [1], [129, 200, 64], [700, 1])
"""One, few and 16 segments; with and without state that is passed."""


class Recorder:
    """Stands in for launching: what Triton would compile, by signature and kernel."""

    def __init__(self, monkeypatch):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend

        self.backend = make_backend(GPUTarget("cuda", 90, 32))
        self.chosen = {}
        self.calls = 0
        self.kept = []  # so that no two have one id
        self.binders = {}
        recorder = self

        def record(self, name, kernel, programs, arguments, options):
            recorder.record(self, name, kernel, arguments, options())

        monkeypatch.setattr(CompiledKernels, "launch", record)
        monkeypatch.setattr(launcher, "_by_signature", {})
        monkeypatch.setattr(_triton, "INTERPRET", True)  # CPU tensors take the kernels
        monkeypatch.setattr(checks, "check_bounds", lambda *_: None)

    def record(self, signature, name, kernel, arguments, options):
        from triton.runtime.jit import create_function_from_signature

        if kernel not in self.binders:
            self.binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, self.backend)
        _, specialisation, rest = self.binders[kernel](*arguments, **options)
        self.kept.append(signature)
        self.calls += 1
        self.chosen.setdefault((id(signature), name), set()).add(
            f"{kernel.__name__} {specialisation} {sorted(rest.items())}"
        )


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


def tensor(*shape, dtype=torch.float32, shift=0, pitch=0):
    """shift: elements by which it is off alignment. pitch: elements between its rows besides its own."""
    width = math.prod(shape[1:])
    rows = torch.zeros(shift + shape[0] * (width + pitch), dtype=dtype)
    rows = rows[shift:].view(shape[0], width + pitch)[:, :width].unflatten(1, shape[1:])
    return rows.to(DEVICE).requires_grad_()


def scan_calls():
    """Every combination of what a signature is made of, each on packs of several lengths."""
    base = {
        "channels": 64,
        "states": 4,
        "groups": None,
        "dtype": torch.bfloat16,
        "optional": True,
        "shift": 0,
        "pitch": 0,
        "parameters": torch.float32,
    }
    changes = [
        {},
        {"channels": 1},
        {"channels": 48},
        {"channels": 6, "groups": 2},
        {"states": 16},
        {"dtype": torch.float32},
        {"dtype": torch.float32, "parameters": torch.bfloat16},
        {"parameters": torch.bfloat16},
        {"optional": False},
        {"optional": False, "parameters": torch.bfloat16},
        {"shift": 1},
        {"shift": 8},
        {"pitch": 3},
        {"pitch": 16},
    ]
    for change, lengths, final in itertools.product(changes, LENGTHS, (False, True)):
        yield base | change, lengths, final


def run_scan(channels, states, groups, dtype, parameters, optional, shift, pitch, lengths, final, softplus=True):
    packing = Packing.from_lengths(lengths)
    tokens = packing.num_tokens
    narrow = (tokens, states) if groups is None else (tokens, groups, states)

    def rows():
        return tensor(tokens, channels, dtype=dtype, shift=shift, pitch=pitch)

    inputs = {"u": rows(), "delta": rows(), "A": tensor(channels, states, dtype=parameters)}
    inputs |= {name: tensor(*narrow, dtype=dtype, shift=shift, pitch=pitch) for name in ("B", "C")}
    if optional:
        inputs |= {
            "D": torch.zeros(channels, dtype=parameters),
            "z": rows(),
            "delta_bias": torch.zeros(channels, dtype=parameters),
        }
        inputs["initial_states"] = torch.zeros(len(lengths), channels, states)
    out = selective_scan(
        **inputs, delta_softplus=softplus, cu_seqlens=packing.cu_seqlens, schedule=packing.schedule,
        return_final_states=final,
    )  # fmt: skip
    outs = out if final else (out,)
    torch.autograd.backward(outs, [torch.zeros_like(x) for x in outs])


def run_conv(
    lengths, channels=128, width=4, dtype=torch.bfloat16, optional=True, shift=0, pitch=0, final=False, silu=True
):
    packing = Packing.from_lengths(lengths)
    x = tensor(packing.num_tokens, channels, dtype=dtype, shift=shift, pitch=pitch)
    weight = torch.zeros(channels, width, requires_grad=True)
    bias, initial = (
        (torch.zeros(channels), torch.zeros(len(lengths), channels, width - 1)) if optional else (None, None)
    )
    out = causal_conv1d(
        x, weight, bias, activation="silu" if silu else None, initial_states=initial, return_final_states=final,
        cu_seqlens=packing.cu_seqlens, schedule=packing.schedule,
    )  # fmt: skip
    outs = out if final else (out,)
    torch.autograd.backward(outs, [torch.zeros_like(x) for x in outs])


def test_scans_with_one_signature_are_specialised_alike(recorder):
    for options, lengths, final in scan_calls():
        run_scan(**options, lengths=lengths, final=final)
    run_scan(**options, lengths=lengths, final=final, softplus=False)
    assert all(len(chosen) == 1 for chosen in recorder.chosen.values())
    assert len(recorder.chosen) < recorder.calls / 2  # packs of other lengths had the signature of some before


def test_convolutions_with_one_signature_are_specialised_alike(recorder):
    changes = [
        *({}, {"channels": 1}, {"channels": 130}, {"width": 3}, {"dtype": torch.float32}, {"dtype": torch.float64}),
        *(
            {"optional": False},
            {"shift": 1},
            {"shift": 8},
            {"pitch": 3},
            {"pitch": 16},
            {"final": True},
            {"silu": False},
        ),
    ]
    for change, lengths in itertools.product(changes, LENGTHS):
        run_conv(lengths, **change)
    assert all(len(chosen) == 1 for chosen in recorder.chosen.values())
    assert len(recorder.chosen) < recorder.calls / 2


@pytest.mark.parametrize("forgotten", ["data_ptr", "stride", "dtype"])
def test_a_signature_that_forgets_something_is_noticed(recorder, monkeypatch, forgotten):
    class Blind:
        """A tensor, as a signature sees it that does not look at one property."""

        def __init__(self, x):
            self.x = x

        def __getattr__(self, name):
            constant = {"data_ptr": lambda: 0, "stride": lambda: (), "dtype": None}
            return constant[name] if name == forgotten else getattr(self.x, name)

    def blind(tensors, *numbers):
        return compiled_for([x if x is None else Blind(x) for x in tensors], *numbers)

    monkeypatch.setattr(importlib.import_module("packmamba_kernels.causal_conv1d.launch"), "compiled_for", blind)
    for change in ({}, {"shift": 1}, {"pitch": 3}, {"dtype": torch.float16}):
        run_conv([70, 3], **change)
    assert any(len(chosen) > 1 for chosen in recorder.chosen.values())


class Kernel:
    """Counts how often Triton is asked, and what is launched again."""

    arg_names = ("p_x", "size", "BLOCK")

    def __init__(self):
        self.asked, self.again = [], []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.asked.append((grid, arguments, options))
            return Compiled(self)

        return launch


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *arguments: self.kernel.again.append((grid, arguments))


def test_triton_is_asked_once_for_a_signature(monkeypatch):
    monkeypatch.setattr(launcher, "_by_signature", {})
    kernel, x = Kernel(), torch.zeros(8)
    for size in (3, 5):
        compiled_for([x, None], "call").launch("name", kernel, 7, (x, size), lambda: {"BLOCK": 16, "num_warps": 1})
    assert kernel.asked == [((7,), (x, 3), {"BLOCK": 16, "num_warps": 1, **_triton.LAUNCH_OPTIONS})]
    assert kernel.again == [((7, 1, 1), (x, 5, 16))]
    compiled_for([x, None], "other call").launch("name", kernel, 7, (x, 5), lambda: {"BLOCK": 16})
    compiled_for([x[1:], None], "call").launch("name", kernel, 7, (x, 5), lambda: {"BLOCK": 16})  # off alignment
    compiled_for([x, None, x], "call").launch("name", kernel, 7, (x, 5), lambda: {"BLOCK": 16})
    compiled_for([x, None, x[1:]], "call").launch("name", kernel, 7, (x, 5), lambda: {"BLOCK": 16})
    assert len(kernel.asked) == 5
    assert len(kernel.again) == 1


def test_signatures_do_not_pile_up(monkeypatch):
    known = {}
    monkeypatch.setattr(launcher, "_by_signature", known)
    for i in range(3 * launcher.MAX_SIGNATURES):
        compiled_for([torch.zeros(1)], i)
    assert 0 < len(known) <= launcher.MAX_SIGNATURES


def test_without_the_cache_triton_is_asked_at_every_launch(monkeypatch):
    monkeypatch.setattr(launcher, "_by_signature", {})
    monkeypatch.setattr(launcher, "CACHE", False)
    kernel, x = Kernel(), torch.zeros(8)
    for size in (3, 5):
        compiled_for([x], "call").launch("name", kernel, 7, (x, size), lambda: {"BLOCK": 16})
    assert [arguments for _, arguments, _ in kernel.asked] == [(x, 3), (x, 5)]
    assert not kernel.again


@pytest.mark.slow
def test_switches_are_read_from_the_environment():
    def switches(**environment):
        code = "from packmamba_kernels.runtime import dispatch, launching; "
        code += "print(launching.CACHE, dispatch.ALWAYS_DISPATCH)"
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert switches() == ["True", "False"]
    assert switches(PACKMAMBA_LAUNCH_CACHE="0", PACKMAMBA_DISPATCHER="always") == ["False", "True"]


def misaligned(*shape, dtype):
    """Rows of an odd pitch, off alignment: contiguous as they lie only where there is one."""
    width = math.prod(shape[1:])
    strides = (width + 3, *(math.prod(shape[i + 1 :]) for i in range(1, len(shape))))
    return torch.zeros(1 + shape[0] * (width + 3), dtype=dtype).as_strided(shape, strides, 1)


@pytest.mark.parametrize("lengths", itertools.permutations(([1], [2], [1, 1])), ids=str)
def test_a_gradient_that_is_contiguous_as_it_lies_has_a_signature_of_its_own(recorder, lengths):
    """With one row it is taken as it is, off alignment; with two it is copied to fresh memory."""
    for each in lengths:
        packing = Packing.from_lengths(each)
        tokens, documents = packing.num_tokens, {"cu_seqlens": packing.cu_seqlens, "schedule": packing.schedule}
        x = tensor(tokens, 128, dtype=torch.bfloat16)
        out = causal_conv1d(x, torch.zeros(128, 4), **documents)
        out.backward(misaligned(tokens, 128, dtype=torch.bfloat16))
        delta, B, C = (tensor(tokens, n, dtype=torch.bfloat16) for n in (128, 16, 16))
        out = selective_scan(x, delta, torch.zeros(128, 16), B, C, **documents)
        out.backward(misaligned(tokens, 128, dtype=torch.bfloat16))
    assert all(len(chosen) == 1 for chosen in recorder.chosen.values())


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1)])
def test_states_that_are_contiguous_as_they_lie_have_a_signature_of_their_own(recorder, numbers):
    for number in numbers:
        packing = Packing.from_lengths([3] * number)
        documents = {"cu_seqlens": packing.cu_seqlens, "schedule": packing.schedule}
        x = tensor(packing.num_tokens, 128, dtype=torch.bfloat16)
        initial = misaligned(number, 128, 3, dtype=torch.bfloat16).requires_grad_()
        out, final = causal_conv1d(
            x, torch.zeros(128, 4), initial_states=initial, return_final_states=True, **documents
        )
        dfinal = misaligned(number, 128, 3, dtype=torch.bfloat16)
        torch.autograd.backward([out, final], [torch.zeros_like(out), dfinal])
    assert all(len(chosen) == 1 for chosen in recorder.chosen.values())
