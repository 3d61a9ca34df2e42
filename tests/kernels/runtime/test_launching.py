"""Calls of one form launch what Triton would have chosen for each of them. Nothing is compiled or launched here."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch
from packmamba_kernels import causal_conv1d, selective_scan
from packmamba_kernels.causal_conv1d import op as conv_op
from packmamba_kernels.runtime import launching as launcher
from packmamba_kernels.runtime import triton_glue as _triton
from packmamba_kernels.runtime.launching import Launches, launches
from packmamba_kernels.selective_scan import op as scan_op

from packmamba.packing import Packing
from tests.support import DEVICE

pytestmark = pytest.mark.skipif(_triton.INTERPRET or DEVICE != "cpu", reason="of Triton's choice, without a GPU")

LENGTHS = ([70, 3], [16] * 16, [1], [129, 200, 64], [700, 1])
"""One, few and 16 segments; with and without state that is passed."""


class Recorder:
    """Stands in for launching: what Triton would compile, by form and place."""

    def __init__(self, monkeypatch):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend

        self.backend = make_backend(GPUTarget("cuda", 90, 32))
        self.chosen = {}
        self.calls = 0
        self.kept = []  # so that no two have one id
        self.binders = {}
        recorder = self

        def record(self, place, kernel, programs, arguments, options):
            recorder.record(self, place, kernel, arguments, options())

        monkeypatch.setattr(Launches, "__call__", record)
        monkeypatch.setattr(launcher, "_FORMS", {})
        monkeypatch.setattr(_triton, "INTERPRET", True)  # CPU tensors take the kernels
        monkeypatch.setattr(conv_op, "check_bounds", lambda *_: None)
        monkeypatch.setattr(scan_op, "check_bounds", lambda *_: None)

    def record(self, form, place, kernel, arguments, options):
        from triton.runtime.jit import create_function_from_signature

        if kernel not in self.binders:
            self.binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, self.backend)
        _, specialisation, rest = self.binders[kernel](*arguments, **options)
        self.kept.append(form)
        self.calls += 1
        self.chosen.setdefault((id(form), place), set()).add(
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
    """Every combination of what a form is made of, each on packs of several lengths."""
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


def test_scans_of_one_form_are_specialised_alike(recorder):
    for options, lengths, final in scan_calls():
        run_scan(**options, lengths=lengths, final=final)
    run_scan(**options, lengths=lengths, final=final, softplus=False)
    assert all(len(chosen) == 1 for chosen in recorder.chosen.values())
    assert len(recorder.chosen) < recorder.calls / 2  # packs of other lengths had the form of some before


def test_convolutions_of_one_form_are_specialised_alike(recorder):
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
def test_a_form_that_forgets_something_is_noticed(recorder, monkeypatch, forgotten):
    class Blind:
        """A tensor, as a form sees it that does not look at one property."""

        def __init__(self, x):
            self.x = x

        def __getattr__(self, name):
            constant = {"data_ptr": lambda: 0, "stride": lambda: (), "dtype": None}
            return constant[name] if name == forgotten else getattr(self.x, name)

    def blind(tensors, tables, *numbers):
        return launches([x if x is None else Blind(x) for x in tensors], tables, *numbers)

    monkeypatch.setattr(importlib.import_module("packmamba_kernels.causal_conv1d.launch"), "launches", blind)
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


def test_triton_is_asked_once_for_a_form(monkeypatch):
    monkeypatch.setattr(launcher, "_FORMS", {})
    kernel, x = Kernel(), torch.zeros(8)
    for size in (3, 5):
        launches([x, None], [], "form")("place", kernel, 7, (x, size), lambda: {"BLOCK": 16, "num_warps": 1})
    assert kernel.asked == [((7,), (x, 3), {"BLOCK": 16, "num_warps": 1, **_triton.LAUNCH_OPTIONS})]
    assert kernel.again == [((7, 1, 1), (x, 5, 16))]
    launches([x, None], [], "other form")("place", kernel, 7, (x, 5), lambda: {"BLOCK": 16})
    launches([x[1:], None], [], "form")("place", kernel, 7, (x, 5), lambda: {"BLOCK": 16})  # off alignment
    launches([x, None], [x], "form")("place", kernel, 7, (x, 5), lambda: {"BLOCK": 16})
    launches([x, None], [x[1:]], "form")("place", kernel, 7, (x, 5), lambda: {"BLOCK": 16})
    assert len(kernel.asked) == 5
    assert len(kernel.again) == 1


def test_forms_do_not_pile_up(monkeypatch):
    forms = {}
    monkeypatch.setattr(launcher, "_FORMS", forms)
    for i in range(3 * launcher.MAX_FORMS):
        launches([torch.zeros(1)], [], i)
    assert 0 < len(forms) <= launcher.MAX_FORMS
