"""What the gated RMS normalisation refuses: each wrong argument is named, with what would be accepted."""

from __future__ import annotations

import pytest
import torch
from packmamba_kernels import gated_rms_norm

GOOD = {"y": torch.randn(6, 8), "z": torch.randn(6, 8), "weight": torch.randn(8)}
BAD = {
    "batch dimension": ({"y": torch.randn(1, 6, 8)}, ValueError, r"y must have shape \(T, E\).*\(1, 6, 8\)"),
    "not a tensor": ({"y": [1.0]}, TypeError, "y must be a tensor, got list"),
    "gate not a tensor": ({"z": 1.0}, TypeError, "z must be a tensor, got float"),
    "no tokens": ({"y": torch.randn(0, 8)}, ValueError, r"at least one token.*\(0, 8\)"),
    "integers": ({"y": torch.ones(6, 8, dtype=torch.int64)}, TypeError, "y must have dtype .*got torch.int64"),
    "channel-first": ({"z": torch.randn(8, 6).T}, ValueError, r"z must have contiguous channels.*\(1, 6\)"),
    "gate of another shape": ({"z": torch.randn(6, 4)}, ValueError, r"z must have y's shape .*\(6, 8\), got \(6, 4\)"),
    "weight of another size": ({"weight": torch.randn(4)}, ValueError, r"weight must have shape \(E,\), got \(4,\)"),
    "mixed devices": ({"weight": torch.randn(8, device="meta")}, ValueError, "weight is on meta, but y is on cpu"),
    "groups that do not divide": ({"group_size": 3}, ValueError, "group_size must be .* divides E = 8, got 3"),
    "no group": ({"group_size": 0}, ValueError, "group_size must be .* got 0"),
    "a group of a flag": ({"group_size": True}, ValueError, "group_size must be .* got True"),
    "half a group": ({"group_size": 4.0}, ValueError, "group_size must be .* got 4.0"),
    "negative eps": ({"eps": -1e-5}, ValueError, "eps must be a number from 0, got -1e-05"),
    "eps NaN": ({"eps": float("nan")}, ValueError, "eps must be a number from 0, got nan"),
    "eps text": ({"eps": "small"}, ValueError, "eps must be a number from 0, got 'small'"),
    "flag a string": ({"norm_before_gate": "no"}, TypeError, "norm_before_gate must be True or False, got 'no'"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        gated_rms_norm(**(GOOD | arguments))


def test_a_group_larger_than_a_program_can_hold_is_refused():
    with pytest.raises(ValueError, match="group_size is 16384; groups of up to 8192 channels"):
        gated_rms_norm(torch.randn(1, 16384), None, torch.randn(16384))


def test_what_passed_once_does_not_let_an_equal_value_of_another_type_pass():
    gated_rms_norm(**GOOD, group_size=1)
    with pytest.raises(ValueError, match="got True"):
        gated_rms_norm(**GOOD, group_size=True)
