"""The README's numbers are the committed results, rendered."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.operators.cases import Case
from benchmarks.operators.timing import PARTS, describe
from benchmarks.readme_tables import DOCUMENTS, TABLES, UNMEASURED, render

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_readmes_show_exactly_the_committed_results(document: str) -> None:
    readme = (ROOT / document).read_text()
    assert "<!-- table: " in readme
    assert render(readme, ROOT / "benchmarks" / "results") == readme


def test_every_table_stands_somewhere() -> None:
    text = "".join((ROOT / document).read_text() for document in DOCUMENTS)
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == set(TABLES)


def test_an_unknown_table_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'speed'; available: compare"):
        render("<!-- table: speed --> <!-- end -->", tmp_path)


@pytest.mark.parametrize("name", UNMEASURED)
def test_a_table_that_may_be_unmeasured_says_so_until_there_are_results(name: str, tmp_path: Path) -> None:
    mark = f"<!-- table: {name} -->{{}}<!-- end -->"
    sentence = render(mark.format(" | old | "), tmp_path)
    assert sentence == mark.format(f"\n{UNMEASURED[name]}\n")
    environment = {
        "device": "GPU", "device_type": "cuda", "cuda": "13.0", "threads": 1, "commit": "0123456789", "dirty": False,
        "versions": {"torch": "2.9", "triton": "3.9"},
    }  # fmt: skip
    lognormal = Case("selective_scan", 2048, 8, 4, "lognormal", torch.bfloat16)
    rest = {"skipped": None, "bounds_milliseconds": {"bytes": 0.5, "special_functions": None}}
    rows = [
        describe("packmamba", case, part) | rest | {"milliseconds": {"median": 1.5}, "target_milliseconds": 1.9}
        for case in (lognormal, replace(lognormal, distribution="rows"))
        for part in PARTS
    ]
    (tmp_path / f"{name}.json").write_text(json.dumps({"results": rows, "environment": environment}))
    drawn = render(sentence, tmp_path)
    assert "Unmeasured" not in drawn
    assert "GPU, CUDA 13.0, torch 2.9, triton 3.9, commit 01234567." in drawn
    assert {"kernels": "| 1.500 ms | 0.50 ms |  | ≤ 1.90 ms | 1.00× |", "scaling": "| 732.42 ns |"}[name] in drawn


def test_a_table_that_is_measured_needs_its_results(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        render("<!-- table: packers --><!-- end -->", tmp_path)
