"""One policy for documents without anything to predict, for sources that are read whole and for streams."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

from packmamba.data.documents import rows_to_train_on
from packmamba.data.sources import Files
from packmamba.errors import UsageError

SOURCE = Files(paths=["a.jsonl"])
LENGTHS = np.array([3, 0, 5, 2, 0])
SILENT = np.array([False, False, False, True, False])


@pytest.mark.parametrize(
    ("first_row", "messages"),
    [
        (
            None,
            [
                f"2 of 5 documents of {SOURCE} are empty after tokenisation; they are skipped",
                f"1 of 5 conversations of {SOURCE} have nothing that the assistant says; they are skipped",
            ],
        ),
        (
            10,
            [
                f"row 11 of {SOURCE} is empty after tokenisation, and maybe others; they are skipped",
                f"row 13 of {SOURCE} has nothing that the assistant says, and maybe others; they are skipped",
            ],
        ),
    ],
    ids=["read whole", "streamed"],
)
def test_rows_without_anything_to_predict_are_left_out_and_told(first_row: int | None, messages: list[str]) -> None:
    said: list[str] = []
    rows = rows_to_train_on(LENGTHS, SILENT, SOURCE, "skip", warn=said.append, first_row=first_row)
    assert rows.tolist() == [0, 2]
    assert said == messages


@pytest.mark.parametrize(
    ("first_row", "message"), [(None, r"2 of 5 documents .*, the first is row 1; drop"), (10, r"row 11 of .*; drop")]
)
def test_or_they_are_an_error(first_row: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rows_to_train_on(LENGTHS, SILENT, SOURCE, "error", warn=pytest.fail, first_row=first_row)
    full = rows_to_train_on(LENGTHS[:1], SILENT[:1], SOURCE, "error", warn=pytest.fail, first_row=first_row)
    assert full.tolist() == [0]
