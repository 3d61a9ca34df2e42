"""Arguments of a signature that has passed its check are not looked at again."""

from __future__ import annotations

import pytest
import torch
from packmamba_kernels import checks
from packmamba_kernels.checks import check_once
from packmamba_kernels.schedule import build_schedule


class Check:
    def __init__(self):
        self.calls = 0

    def __call__(self, *arguments):
        self.calls += 1


def schedule_of(*cu_seqlens):
    return build_schedule(torch.tensor(cu_seqlens, dtype=torch.int32))


def x(*shape, **options):
    return torch.zeros(shape, **options)


DIFFERENT = {
    "shape": (x(4, 2), x(2, 4)),
    "dtype": (x(4), x(4, dtype=torch.float16)),
    "strides": (x(2, 2), x(2, 2).T),
    "device": (x(4), x(4, device="meta")),
    "there or not": (x(4), None),
    "a string": ("silu", "relu"),
    "a flag": (True, False),
    "a number": (3, 4),
    "a flag and a number": (True, 1),
    "documents of a schedule": (schedule_of(0, 4), schedule_of(0, 2, 4)),
    "tokens of a schedule": (schedule_of(0, 4), schedule_of(0, 5)),
    "device of a schedule": (schedule_of(0, 4), schedule_of(0, 4).to("meta")),
}


@pytest.mark.parametrize(("first", "second"), DIFFERENT.values(), ids=DIFFERENT)
def test_every_signature_is_checked_once(first, second):
    check = Check()
    for argument in (first, second, first, second):
        check_once(check, x(3), argument)
    assert check.calls == 2


def test_values_are_not_part_of_a_signature():
    check = Check()
    check_once(check, x(3), schedule_of(0, 1, 4))
    check_once(check, x(3) + 1, schedule_of(0, 3, 4))
    assert check.calls == 1


def test_every_check_has_its_own_signatures():
    first, second = Check(), Check()
    for check in (first, second):
        check_once(check, x(3))
    assert first.calls == second.calls == 1


@pytest.mark.parametrize("other", [[1.0], object()], ids=["list", "object"])
def test_arguments_of_other_types_are_checked_every_time(other):
    check = Check()
    for _ in range(2):
        check_once(check, x(3), other)
    assert check.calls == 2


def test_what_fails_fails_again():
    def check(argument):
        raise ValueError("wrong")

    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"):
            check_once(check, x(3))


def test_signatures_do_not_pile_up():
    check = Check()
    for size in range(3 * checks.MAX_SIGNATURES):
        check_once(check, torch.empty(size))
    assert 0 < len(checks._passed) <= checks.MAX_SIGNATURES
