"""The kernels in the forms that train: 16-bit inputs, many channels, N = 16, against the definition.

Run by test_interpreter.py, in the interpreter and, where there is one, on a GPU. The interpreter takes a second for
some thirty tokens of 128 channels, so its cases are few: one for each segment size, with several blocks of channels in
two of them, and state that passes from segment to segment in all.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from packmamba_kernels import selective_scan
from packmamba_kernels.runtime.triton_glue import INTERPRET
from packmamba_kernels.selective_scan.op import SELECTIVE_SCAN

from tests.kernels.selective_scan.scan_cases import assert_same_as_definition, cu_seqlens_of, make_inputs
from tests.support import DEVICE

pytestmark = pytest.mark.skipif(not INTERPRET and DEVICE == "cpu", reason="run by test_interpreter.py")

ROUNDING = 1.6 if INTERPRET else 1.0
"""Triton's interpreter rounds fp32 to bf16 towards zero."""

MANY, LONG = [1, 2, 3, 64, 65, 130, 300], [1100]

if INTERPRET:
    CASES = [(128, torch.bfloat16, 64, MANY), (192, torch.float16, 256, [2, 65, 300]), (64, torch.bfloat16, 1024, LONG)]
else:
    CASES = list(itertools.product((128, 192), (torch.bfloat16, torch.float16), (64, 256, 1024), (MANY, LONG)))


@pytest.mark.parametrize(("channels", "dtype", "size", "lengths"), CASES, ids=str)
def test_equals_the_definition(channels, dtype, size, lengths, monkeypatch):
    fixed = dataclasses.replace(SELECTIVE_SCAN.definition, segment_size=lambda u, count: size)
    monkeypatch.setattr(SELECTIVE_SCAN, "definition", fixed)
    documents = SELECTIVE_SCAN.documents(torch.empty(sum(lengths), channels), cu_seqlens_of(lengths), None)
    assert documents.offsets.size == size
    if max(lengths) > size:
        assert documents.segments().num_links > 0  # state passes from segment to segment
    inputs = make_inputs(lengths, channels, 16, dtype=dtype, initial=size == 64)
    assert_same_as_definition(selective_scan, inputs, cu_seqlens_of(lengths), ROUNDING, final_states=size == 64)
