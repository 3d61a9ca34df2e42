"""What the packed causal convolution refuses: each wrong argument is named, with what would be accepted."""

from __future__ import annotations

import pytest
import torch
from packmamba_kernels import causal_conv1d
from packmamba_kernels.schedule import build_schedule

X, WEIGHT = torch.randn(6, 3), torch.randn(3, 4)
BAD = {
    "batch dimension": ({"x": torch.randn(1, 6, 3)}, ValueError, r"x must have shape \(T, E\).*\(1, 6, 3\)"),
    "not a tensor": ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    "no tokens": ({"x": torch.randn(0, 3)}, ValueError, r"at least one token.*\(0, 3\)"),
    "integers": ({"x": torch.ones(6, 3, dtype=torch.int64)}, TypeError, "x must have dtype .*got torch.int64"),
    "channel-first": ({"x": torch.randn(3, 6).T}, ValueError, r"contiguous channels.*strides \(1, 6\)"),
    "other channels": ({"weight": torch.randn(5, 4)}, ValueError, r"weight .*\(5, 4\).*x of shape \(6, 3\)"),
    "weight with a group dimension": ({"weight": torch.randn(3, 1, 4)}, ValueError, r"weight .*\(3, 1, 4\)"),
    "width 1": ({"weight": torch.randn(3, 1)}, ValueError, "W = 1; widths 2 to 8"),
    "width 9": ({"weight": torch.randn(3, 9)}, ValueError, "W = 9; widths 2 to 8"),
    "bias of another size": ({"bias": torch.randn(4)}, ValueError, r"bias must have shape \(E,\), got \(4,\)"),
    "activation": ({"activation": "gelu"}, ValueError, "None or 'silu', got 'gelu'"),
    "cu_seqlens dtype": ({"cu_seqlens": torch.tensor([0, 6])}, TypeError, "torch.int32 tensor, got torch.int64"),
    "cu_seqlens list": ({"cu_seqlens": [0, 6]}, TypeError, "torch.int32 tensor, got list"),
    "cu_seqlens rank": ({"cu_seqlens": torch.zeros(1, 2).int()}, ValueError, r"\(S\+1,\).*\(1, 2\)"),
    "cu_seqlens start": ({"cu_seqlens": torch.tensor([1, 6]).int()}, ValueError, "start at 0, got 1"),
    "cu_seqlens end": ({"cu_seqlens": torch.tensor([0, 5]).int()}, ValueError, "end at T = 6.*got 5"),
    "empty document": ({"cu_seqlens": torch.tensor([0, 2, 2, 6]).int()}, ValueError, "entry 1 is 2 and entry 2 is 2"),
    "cu_seqlens device": (
        {"cu_seqlens": torch.zeros(2, dtype=torch.int32, device="meta")},
        ValueError,
        "cu_seqlens is on meta, but x is on cpu",
    ),
    "mixed devices": ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta, but x is on cpu"),
    "initial states of another shape": (
        {"initial_states": torch.randn(2, 3, 3)},
        ValueError,
        r"initial_states .*\(1, 3, 3\), got \(2, 3, 3\)",
    ),
    "schedule of another pack": (
        {"cu_seqlens": torch.tensor([0, 6]).int(), "schedule": build_schedule(torch.tensor([0, 2, 6]).int())},
        ValueError,
        "schedule was built for 2 documents, but cu_seqlens has 1",
    ),
    "activation of another type": ({"activation": 1}, ValueError, "activation must be None or 'silu', got 1"),
    "activation in a list": ({"activation": ["silu"]}, ValueError, r"None or 'silu', got \['silu'\]"),
    "weight a number": ({"weight": 3}, TypeError, "weight must be a tensor, got int"),
    "bias a list": ({"bias": [1.0]}, TypeError, "bias must be a tensor, got list"),
    "initial states a number": ({"initial_states": 1.5}, TypeError, "initial_states must be a tensor, got float"),
    "cu_seqlens a number": ({"cu_seqlens": 6}, TypeError, "torch.int32 tensor, got int"),
    "schedule a number": ({"schedule": 3}, TypeError, "schedule must be a Schedule .*got int"),
    "a packing for a schedule": (
        {"schedule": object(), "cu_seqlens": torch.tensor([0, 6]).int()},
        TypeError,
        "schedule must be a Schedule .*got object",
    ),
    "flag a string": ({"return_final_states": "no"}, TypeError, "return_final_states must be True or False, got 'no'"),
    "schedule alone": (
        {"schedule": build_schedule(torch.tensor([0, 6]).int())},
        ValueError,
        "schedule needs the cu_seqlens",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        causal_conv1d(**({"x": X, "weight": WEIGHT} | arguments))
