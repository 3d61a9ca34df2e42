"""Forks of mamba-ssm are told by their functions' arguments."""

from __future__ import annotations

import pytest

from packmamba.compare.peers import boundary_argument

FUNCTIONS = {
    "upstream": (lambda u, delta: u, None),
    "position_indices": (lambda u, position_indices=None: u, "position_indices"),
    "cu_seqlens": (lambda u, cu_seqlens=None: u, "cu_seqlens"),
    "both": (lambda u, cu_seqlens=None, position_indices=None: u, "position_indices"),
}


@pytest.mark.parametrize(("function", "argument"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_argument_that_takes_documents_is_found(function, argument):
    assert boundary_argument(function) == argument
