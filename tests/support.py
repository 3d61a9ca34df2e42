"""What every test shares: one tolerance helper, one bit-identity helper, the lengths that find bugs."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

DEVICE = os.environ.get("PACKMAMBA_TEST_DEVICE", "cpu")
"""Where the kernels' tests put their tensors; test_interpreter.py runs them once more on a GPU where there is one."""

LENGTHS = {
    "1": [1],
    "1-1-63-200": [1, 1, 63, 200],
    "W-1,W": [3, 4, 3, 4],
    "64": [64],
    "65-64-63": [65, 64, 63],
    "full-pack": [300],
    "mixed": [5, 1, 130, 64, 2, 3, 4, 70],
}
"""Document lengths by name: 1, W-1, W, exactly a chunk, a chunk +- 1, one document that fills the pack."""


def skip_without_memory(gibibytes: float) -> None:
    """Skips a test that needs so much memory on the GPU, where there is less."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    free, total = torch.cuda.mem_get_info()
    if free < gibibytes * 2**30:
        pytest.skip(f"needs {gibibytes:g} GiB on the GPU, which has {free / 2**30:.1f} free of {total / 2**30:.1f} GiB")


def rms_ratio(reference: Tensor, actual: Tensor) -> float:
    """‖actual − reference‖ / ‖reference‖ in fp64."""
    reference, actual = reference.detach().double(), actual.detach().double()
    return float((actual - reference).norm() / reference.norm().clamp_min(1e-30))


def assert_close(name: str, reference: Tensor, actual: Tensor, ratio: float) -> None:
    """Fails unless `actual` is within `ratio` of `reference` (RMS error over RMS), or where either holds a NaN or an
    infinity, or where the reference is all zero and the comparison would be vacuous."""
    assert reference.shape == actual.shape, f"{name}: shapes {tuple(reference.shape)} and {tuple(actual.shape)}"
    assert torch.isfinite(reference).all(), f"{name}: the reference is not finite"
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    assert reference.count_nonzero() > 0, f"{name}: the reference is all zero, nothing would be tested"
    error = rms_ratio(reference, actual)
    assert error <= ratio, f"{name}: RMS error ratio {error:.2e} > {ratio:.2e}"


def assert_identical(name: str, reference: Tensor, actual: Tensor) -> None:
    """Fails unless both have the same bits. NaN always fails."""
    assert reference.shape == actual.shape, f"{name}: shapes {tuple(reference.shape)} and {tuple(actual.shape)}"
    assert reference.dtype == actual.dtype, f"{name}: dtypes {reference.dtype} and {actual.dtype}"
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    different = int((reference != actual).sum())
    assert different == 0, f"{name}: {different} of {reference.numel()} elements differ"
