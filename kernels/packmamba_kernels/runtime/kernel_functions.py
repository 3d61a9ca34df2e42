"""Functions that the kernels of several operators call. Imports triton."""

# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# (Triton compiles this file.)

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(b_x):
    """1 / (1 + e^-x). In fp32 by a reciprocal square root, which is one instruction; a division takes five more."""
    if b_x.dtype == tl.float64:
        return 1.0 / (1.0 + tl.exp(-b_x))
    b_r = tl.rsqrt(1.0 + tl.exp2(b_x * -LOG2_E))
    return b_r * b_r
