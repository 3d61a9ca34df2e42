"""Terminals that know ASCII alone get readable text, and no error."""

from __future__ import annotations

import io
import sys

import pytest

from packmamba.cli.terminal import never_fail, spelled


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8/3 · d_model", "8/3 * d_model"), ("━━╸ 2–3 × 4", "--- 2-3 x 4"), ("naïve café", "naive cafe"), ("中", "?")],
)
def test_a_character_becomes_its_nearest_in_ascii(text: str, expected: str) -> None:
    assert spelled(text) == expected


def test_an_ascii_stream_is_written_to_without_error_and_others_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ascii_stream, utf8 = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for encoding in ("ascii", "utf-8"))
    monkeypatch.setattr(sys, "stdout", ascii_stream)
    monkeypatch.setattr(sys, "stderr", utf8)
    with pytest.raises(UnicodeEncodeError):
        print("a · b", flush=True)
    never_fail()
    print("a · b … c", flush=True)
    print("a · b", file=sys.stderr, flush=True)
    assert ascii_stream.buffer.getvalue() == b"a * b ... c\n"  # pyright: ignore[reportAttributeAccessIssue]
    assert utf8.buffer.getvalue() == "a · b\n".encode()  # pyright: ignore[reportAttributeAccessIssue]
    assert utf8.errors == "strict"
