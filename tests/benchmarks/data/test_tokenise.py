"""The tokenisation benchmark: every combination, and what it writes."""

from __future__ import annotations

import json

import pytest

from benchmarks.data import tokenise


@pytest.mark.slow
def test_every_tokenizer_is_timed_on_text_and_conversations(tmp_path, capsys):
    path = tmp_path / "tokenise.json"
    tokenise.main(["--documents", "50", "--workers", "0", "1", "--repeats", "2", "--output", str(path)])
    report = json.loads(path.read_text())
    assert len(report["results"]) == 3 * 2 * 2
    assert "commit" in report["environment"]
    assert all(result["tokens_per_second"] > 0 and len(result["seconds"]) == 2 for result in report["results"])
    by_case = {(r["tokenizer"], r["documents"], r["workers"]): r["num_tokens"] for r in report["results"]}
    assert by_case["BPETokenizer", "text", 0] == by_case["HFTokenizer", "text", 1]
    assert by_case["ByteTokenizer", "text", 0] > by_case["BPETokenizer", "text", 0]
    assert len(capsys.readouterr().out.splitlines()) == 12
