"""The scan's kernels before and after the walks: conversions are exact, sums are sums.

Those that launch are run by test_interpreter.py, in the interpreter and, where there is one, on a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
from packmamba_kernels._triton import INTERPRET, LAUNCH_OPTIONS, cdiv

from packmamba.bench.compiled import ARCHITECTURES, compile_kernel
from tests.support import DEVICE, assert_close, assert_identical

launching = pytest.mark.skipif(not INTERPRET and DEVICE == "cpu", reason="run by test_interpreter.py")
compiling = pytest.mark.skipif(INTERPRET, reason="the interpreter compiles nothing")


def prepare(A, B, C):
    """As the operator does it: A2, and what the walks take for B and C."""
    from packmamba_kernels.launcher import launches
    from packmamba_kernels.selective_scan.launch import _prepare

    rows, states, groups = B.shape[0], A.shape[1], B.numel() // (B.shape[0] * A.shape[1])
    A2 = torch.full((states, A.shape[0]), float("nan"), device=DEVICE)
    B32, C32 = (torch.full((rows, groups, states), float("nan"), device=DEVICE) for _ in range(2))
    return A2, *_prepare(launches((A, B, C), (), *A.shape, groups), A, B, C, A2, B32, C32)


@launching
@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("states", [4, 16, 128])
def test_parameters_are_converted_exactly(states, dtype, groups):
    generator = torch.Generator().manual_seed(0)
    tokens, channels = 77, 67
    shape = (tokens, states) if groups is None else (tokens, groups, states)
    A = torch.randn(states, channels, generator=generator).to(DEVICE).T
    whole = torch.randn(tokens, 2 * states * (groups or 1) + 5, generator=generator).to(DEVICE, dtype)
    B, C = (part.unflatten(1, shape[1:]) for part in whole[:, 5:].chunk(2, 1))
    A2, B32, C32 = prepare(A, B, C)
    assert_identical("A", (A.T * (1 / math.log(2))).contiguous(), A2)
    for name, given, converted in (("B", B, B32), ("C", C, C32)):
        assert converted.is_contiguous()
        assert_identical(name, given.float().reshape(tokens, -1, states), converted)


@launching
def test_what_is_converted_already_is_not_copied():
    A, B, C = (torch.randn(5, 4, device=DEVICE) for _ in range(3))
    _, B32, C32 = prepare(A, B, C)
    assert (B32.data_ptr(), C32.data_ptr()) == (B.data_ptr(), C.data_ptr())
    _, B32, C32 = prepare(A, B, C.bfloat16())
    assert_identical("B", B, B32.squeeze(1))
    assert_identical("C", C.bfloat16().float(), C32.squeeze(1))


@launching
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("parts", [1, 31, 32, 70])
@pytest.mark.parametrize("optional", [True, False])
def test_parts_are_added_up(parts, optional, groups):
    from packmamba_kernels.selective_scan.kernel_layout import finish_kernel

    generator = torch.Generator().manual_seed(0)
    tokens, channels, states, block, blocks = 300, 67, 4, 64, 3

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    def unset(*shape):
        return torch.full(shape, float("nan"), device=DEVICE)

    dB_parts, dC_parts = (normal(groups, blocks, tokens, states) for _ in range(2))
    dA_parts, dD_parts, dbias_parts = normal(parts, states, channels), normal(parts, channels), normal(parts, channels)
    dB, dC, dA = unset(tokens, groups, states), unset(tokens, groups, states), unset(channels, states)
    dD, dbias = (unset(channels), unset(channels)) if optional else (None, None)
    programs = (states + 2) * cdiv(channels, block) + groups * cdiv(tokens, 1024 // states)
    finish_kernel[(programs,)](
        dB_parts, dC_parts, dA_parts, dD_parts, dbias_parts, dB, dC, dA, dD, dbias, tokens, blocks, parts, channels,
        groups, N=states, BE=block, ROWS=32, HAS_D=optional, HAS_BIAS=optional,
    )  # fmt: skip
    assert_close("dA", dA_parts.double().sum(0).T, dA, 1e-6)
    assert_close("dB", dB_parts.double().sum(1).transpose(0, 1), dB, 1e-6)
    assert_close("dC", dC_parts.double().sum(1).transpose(0, 1), dC, 1e-6)
    if optional:
        assert_close("dD", dD_parts.double().sum(0), dD, 1e-6)
        assert_close("dbias", dbias_parts.double().sum(0), dbias, 1e-6)


@compiling
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("states", [4, 16, 128])
def test_what_runs_before_and_after_the_walks_compiles_without_spills(states, architecture):
    from packmamba_kernels.selective_scan.kernel_layout import finish_kernel, prepare_kernel
    from packmamba_kernels.selective_scan.launch import BLOCK, SUM

    for kernel, narrow, constants in (
        (prepare_kernel, ("p_B", "p_C"), {"BLOCK": BLOCK}),
        (finish_kernel, ("p_dB", "p_dC"), {**SUM, "HAS_D": True, "HAS_BIAS": True}),
    ):
        pointers = {name: "bf16" if name in narrow else "fp32" for name in kernel.arg_names if name.startswith("p_")}
        constants |= {"N": states, "G": 1}
        options = {"num_warps": 4, **LAUNCH_OPTIONS}
        compiled = compile_kernel(kernel, pointers, constants, architecture=architecture, **options)
        assert compiled.stack == 0, kernel
