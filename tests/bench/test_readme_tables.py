"""The README's numbers are the committed results, rendered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from packmamba.bench.readme_tables import DOCUMENTS, TABLES, render

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_readmes_show_exactly_the_committed_results(document: str) -> None:
    readme = (ROOT / document).read_text()
    assert "<!-- table: " in readme
    assert render(readme, ROOT / "bench" / "results") == readme


def test_every_table_stands_somewhere() -> None:
    text = "".join((ROOT / document).read_text() for document in DOCUMENTS)
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == set(TABLES)


def test_an_unknown_table_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'speed'; available: compare"):
        render("<!-- table: speed --> <!-- end -->", tmp_path)
