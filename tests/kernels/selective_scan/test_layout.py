"""The scan's kernels before and after the walks: conversions are exact, sums are sums.

Those that launch are run by test_interpreter.py, in the interpreter and, where there is one, on a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
from packmamba_kernels.runtime.triton_glue import INTERPRET, LAUNCH_OPTIONS, cdiv
from packmamba_kernels.selective_scan.layout import from_matrices, matrix_shape, to_matrices

from benchmarks.compiler.compiled import ARCHITECTURES, compile_kernel
from tests.support import DEVICE, assert_close, assert_identical

launching = pytest.mark.skipif(not INTERPRET and DEVICE == "cpu", reason="run by test_interpreter.py")
compiling = pytest.mark.skipif(INTERPRET, reason="the interpreter compiles nothing")


def matrices(x):
    """(S, E, N) as it lies, read off the definition: channel e of state n at octet e // 8, n, e % 8."""
    lying = torch.zeros(x.shape[0], cdiv(x.shape[1], 8), x.shape[2], 8, device=x.device)
    for e in range(x.shape[1]):
        lying[:, e // 8, :, e % 8] = x[:, e]
    return lying


@pytest.mark.parametrize("channels", [1, 8, 67])
def test_states_come_back_from_how_they_lie(channels):
    x = torch.randn(3, channels, 4, device=DEVICE)
    assert_identical("matrices", matrices(x), to_matrices(x))
    assert matrix_shape(channels, 4) == to_matrices(x).shape[1:]
    assert_identical("states", x, from_matrices(to_matrices(x), channels))


@launching
@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("states", [4, 16, 128])
def test_parameters_are_converted_exactly(states, dtype, groups):
    from packmamba_kernels.runtime.launching import compiled_for
    from packmamba_kernels.selective_scan.launch import _prepare

    generator = torch.Generator().manual_seed(0)
    tokens, channels = 77, 67
    shape = (tokens, states) if groups is None else (tokens, groups, states)
    A = torch.randn(states, channels, generator=generator).to(DEVICE).T
    whole = torch.randn(tokens, 2 * states * (groups or 1) + 5, generator=generator).to(DEVICE, dtype)
    B, C = (part.unflatten(1, shape[1:]) for part in whole[:, 5:].chunk(2, 1))
    A2 = torch.full(matrix_shape(channels, states), float("nan"), device=DEVICE)
    BC = torch.full((tokens, groups or 1, states, 2), float("nan"), device=DEVICE)
    _prepare(compiled_for((A, B, C), *A.shape, groups), A.contiguous(), B, C, A2, BC)
    assert_identical("A", matrices((A * (1 / math.log(2)))[None])[0], A2)
    for i, (name, given) in enumerate((("B", B), ("C", C))):
        assert_identical(name, given.float().reshape(tokens, -1, states), BC[..., i].contiguous())


@launching
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("parts", [1, 31, 32, 70])
@pytest.mark.parametrize("optional", [True, False])
def test_parts_are_added_up(parts, optional, groups):
    from packmamba_kernels.selective_scan.kernels_layout import finish_kernel

    generator = torch.Generator().manual_seed(0)
    tokens, channels, states, block, blocks = 300, 67, 4, 64, 3

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    def unset(*shape):
        return torch.full(shape, float("nan"), device=DEVICE)

    dB_parts, dC_parts = (normal(groups, blocks, tokens, states) for _ in range(2))
    dA_parts, dD_parts, dbias_parts = normal(parts, channels, states), normal(parts, channels), normal(parts, channels)
    dB, dC, dA = unset(tokens, groups, states), unset(tokens, groups, states), unset(channels, states)
    dD, dbias = (unset(channels), unset(channels)) if optional else (None, None)
    programs = (states + 2) * cdiv(channels, block) + groups * cdiv(tokens, 1024 // states)
    finish_kernel[(programs,)](
        dB_parts, dC_parts, to_matrices(dA_parts), dD_parts, dbias_parts, dB, dC, dA, dD, dbias, tokens, blocks, parts,
        channels, groups, N=states, BE=block, ROWS=32, HAS_D=optional, HAS_BIAS=optional,
    )  # fmt: skip
    assert_close("dA", dA_parts.double().sum(0), dA, 1e-6)
    assert_close("dB", dB_parts.double().sum(1).transpose(0, 1), dB, 1e-6)
    assert_close("dC", dC_parts.double().sum(1).transpose(0, 1), dC, 1e-6)
    if optional:
        assert_close("dD", dD_parts.double().sum(0), dD, 1e-6)
        assert_close("dbias", dbias_parts.double().sum(0), dbias, 1e-6)


@compiling
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("states", [4, 16, 128])
def test_what_runs_before_and_after_the_walks_compiles_without_spills(states, architecture):
    from packmamba_kernels.selective_scan.kernels_layout import finish_kernel, prepare_kernel
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
