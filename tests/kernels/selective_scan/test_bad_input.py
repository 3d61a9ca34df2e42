"""What the packed selective scan refuses: each wrong argument is named, with what would be accepted."""

from __future__ import annotations

import pytest
import torch
from packmamba_kernels import selective_scan
from packmamba_kernels.schedule import build_schedule

from tests.kernels.selective_scan.scan_cases import cu_seqlens_of, make_inputs
from tests.support import DEVICE


def of_shape(*shape, dtype=torch.float32, device=DEVICE):
    return torch.zeros(shape, dtype=dtype, device=device)


BAD_INPUTS = {
    "u with a batch dimension": ({"u": of_shape(1, 7, 6)}, ValueError, r"u must have shape \(T, E\).*\(1, 7, 6\)"),
    "no token": ({"u": of_shape(0, 6)}, ValueError, r"at least one token.*\(0, 6\)"),
    "delta of other tokens": ({"delta": of_shape(8, 6)}, ValueError, r"delta must have u's shape.*\(8, 6\).*\(7, 6\)"),
    "z of other channels": ({"z": of_shape(7, 5)}, ValueError, r"z must have u's shape.*\(7, 5\).*\(7, 6\)"),
    "A of other channels": ({"A": of_shape(5, 4)}, ValueError, r"A must have shape \(E, N\).*\(5, 4\).*\(7, 6\)"),
    "A without states": ({"A": of_shape(6)}, ValueError, r"A must have shape \(E, N\), got \(6,\)"),
    "N unsupported": ({"A": of_shape(6, 5)}, ValueError, "N = 5 states; N must be one of 4, 8, 16, 32, 64, 128"),
    "B of other states": ({"B": of_shape(7, 8)}, ValueError, r"B must have shape \(T, N\) = \(7, 4\).*\(7, 8\)"),
    "C of other tokens": ({"C": of_shape(6, 4)}, ValueError, r"C must have shape \(T, N\) = \(7, 4\).*\(6, 4\)"),
    "B and C of other groups": (
        {"B": of_shape(7, 2, 4), "C": of_shape(7, 3, 4)},
        ValueError,
        r"one shape, got \(7, 2, 4\) and \(7, 3, 4\)",
    ),
    "groups that do not divide": (
        {"B": of_shape(7, 4, 4), "C": of_shape(7, 4, 4)},
        ValueError,
        "G = 4 groups, which do not divide E = 6",
    ),
    "D of other channels": ({"D": of_shape(5)}, ValueError, r"D must have shape \(E,\), got \(5,\)"),
    "delta_bias of two dimensions": ({"delta_bias": of_shape(6, 1)}, ValueError, r"delta_bias must have shape \(E,\)"),
    "channels not contiguous": ({"u": of_shape(6, 7).T}, ValueError, "u must be contiguous in its last dimension"),
    "states not contiguous": ({"B": of_shape(4, 7).T}, ValueError, "B must be contiguous in its last dimension"),
    "integers": ({"u": of_shape(7, 6, dtype=torch.int64)}, TypeError, "u must have dtype.*got torch.int64"),
    "a list": ({"A": [1.0]}, TypeError, "A must be a tensor, got list"),
    "fp64 among fp32": (
        {"z": of_shape(7, 6, dtype=torch.float64)},
        TypeError,
        "u is torch.float32 and z is torch.float64",
    ),
    "another device": ({"C": of_shape(7, 4, device="meta")}, ValueError, "C is on meta, but u is on"),
    "cu_seqlens of int64": (
        {"cu_seqlens": torch.tensor([0, 7], device=DEVICE)},
        TypeError,
        "cu_seqlens must be a torch.int32",
    ),
    "cu_seqlens a list": ({"cu_seqlens": [0, 7]}, TypeError, "cu_seqlens must be a torch.int32 tensor, got list"),
    "cu_seqlens on another device": (
        {"cu_seqlens": torch.tensor([0, 7], device="meta").int()},
        ValueError,
        "cu_seqlens is on meta",
    ),
    "cu_seqlens of one entry": (
        {"cu_seqlens": torch.tensor([0], device=DEVICE).int()},
        ValueError,
        r"shape \(S\+1,\).*\(1,\)",
    ),
    "cu_seqlens not from 0": (
        {"cu_seqlens": torch.tensor([1, 7], device=DEVICE).int()},
        ValueError,
        "must start at 0, got 1",
    ),
    "cu_seqlens not to T": (
        {"cu_seqlens": torch.tensor([0, 6], device=DEVICE).int()},
        ValueError,
        "must end at T = 7.*got 6",
    ),
    "an empty document": (
        {"cu_seqlens": torch.tensor([0, 3, 3, 7], device=DEVICE).int()},
        ValueError,
        "entry 1 is 3 and entry 2 is 3",
    ),
    "initial states of other documents": (
        {"initial_states": of_shape(2, 6, 4)},
        ValueError,
        r"initial_states must have shape \(S, E, N\) = \(1, 6, 4\), got \(2, 6, 4\)",
    ),
    "initial states in half precision": (
        {"initial_states": of_shape(1, 6, 4, dtype=torch.bfloat16)},
        TypeError,
        "initial_states must be float32.*bfloat16",
    ),
    **{
        f"{name} a number": ({name: 3}, TypeError, f"{name} must be a tensor, got int")
        for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_states")
    },
    "cu_seqlens a number": ({"cu_seqlens": 7}, TypeError, "cu_seqlens must be a torch.int32 tensor, got int"),
    "schedule a number": ({"schedule": 3}, TypeError, "schedule must be a Schedule .*got int"),
    "softplus a number": ({"delta_softplus": 1}, TypeError, "delta_softplus must be True or False, got 1"),
    "flag a string": ({"return_final_states": "no"}, TypeError, "return_final_states must be True or False, got 'no'"),
    "schedule alone": ({"schedule": build_schedule(cu_seqlens_of([7]))}, ValueError, "schedule needs the cu_seqlens"),
    "schedule of other documents": (
        {"schedule": build_schedule(cu_seqlens_of([2, 5])), "cu_seqlens": cu_seqlens_of([7])},
        ValueError,
        "schedule was built for 2 documents, but cu_seqlens has 1",
    ),
    "schedule of other tokens": (
        {"schedule": build_schedule(cu_seqlens_of([8])), "cu_seqlens": cu_seqlens_of([7])},
        ValueError,
        "schedule was built for 8 tokens, but u has T = 7",
    ),
    "schedule on another device": (
        {"schedule": build_schedule(cu_seqlens_of([7])).to("meta"), "cu_seqlens": cu_seqlens_of([7])},
        ValueError,
        "schedule is on meta, but u is on",
    ),
}


@pytest.mark.parametrize(("given_arguments", "error", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_named(given_arguments, error, message):
    arguments = make_inputs([7], initial=False) | given_arguments
    with pytest.raises(error, match=message):
        selective_scan(**arguments)
