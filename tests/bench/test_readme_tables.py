"""The README's numbers are the committed results, rendered."""

from __future__ import annotations

from pathlib import Path

import pytest

from packmamba.bench.readme_tables import render

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_exactly_the_committed_results() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("<!-- table: ") == 3
    assert render(readme, ROOT / "bench" / "results") == readme


def test_an_unknown_table_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'speed'; available: throughput"):
        render("<!-- table: speed --> <!-- end -->", tmp_path)
