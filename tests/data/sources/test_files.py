"""Local files load as one column of text, or say what is wrong with them."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packmamba.data.sources import Files


def test_json_lines_load_with_the_named_column(write_jsonl, cache):
    path = write_jsonl([{"body": "first", "n": 1}, {"body": "second", "n": 2}])
    dataset = Files(paths=[path], column="body").load(cache)
    assert dataset.column_names == ["text"]
    assert dataset["text"][:] == ["first", "second"]


def test_every_file_format_loads(tmp_path, cache):
    table = pa.table({"text": ["äöü", "b\nc"]})
    (tmp_path / "a.json").write_text('[{"text": "äöü"}, {"text": "b\\nc"}]')
    (tmp_path / "a.csv").write_text('text\näöü\n"b\nc"\n')
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "äöü"}\n{"text": "b\\nc"}\n')
    for name in ("a.json", "a.csv", "a.parquet", "a.arrow", "b.jsonl.gz"):
        assert Files(paths=[str(tmp_path / name)]).load(cache)["text"][:] == ["äöü", "b\nc"], name


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["one\ntwo\n\nthree\n", "four"]),
        ("paragraph", ["one\ntwo", "three\n", "four"]),
        ("line", ["one", "two", "", "three", "four"]),
    ],
)
def test_plain_text_is_a_document_a_file_paragraph_or_line(tmp_path, cache, unit, expected):
    (tmp_path / "1.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "2.txt").write_text("four")
    assert Files(paths=[str(tmp_path / "*.txt")], text_document=unit).load(cache)["text"][:] == expected


def test_globs_reach_into_folders_and_are_sorted(tmp_path, cache):
    for name in ("b/2.txt", "a/3.txt", "a/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    dataset = Files(paths=[str(tmp_path / "**" / "*.txt")]).load(cache)
    assert dataset["text"][:] == ["a/1.txt", "a/3.txt", "b/2.txt"]


def test_a_changed_file_is_read_again(write_jsonl, cache):
    assert Files(paths=[write_jsonl(["old"])]).load(cache)["text"][:] == ["old"]
    assert Files(paths=[write_jsonl(["brand", "new"])]).load(cache)["text"][:] == ["brand", "new"]


CONTENTS = {
    "good.jsonl": '{"text": "a", "n": 1}\n',
    "good.csv": "text\na\n",
    "empty.jsonl": "",
    "header.csv": "text,n\n",
    "corrupt.jsonl": '{"text": "a"}\n{"text": \n',
    "what.xyz": "a",
}
BAD_FILES = {
    "missing-file": (["nothing-*.jsonl"], {}, FileNotFoundError, r"no file matches '.*nothing-\*\.jsonl'"),
    "missing-column": (["good.jsonl"], {"column": "body"}, ValueError, "no column 'body'; its columns: text, n"),
    "not-text": (["good.jsonl"], {"column": "n"}, ValueError, r"column 'n' of .*good\.jsonl holds int64, not text"),
    "empty-file": (["empty.jsonl"], {}, ValueError, r"empty\.jsonl are empty"),
    "no-row": (["header.csv"], {}, ValueError, r"header\.csv hold no row"),
    "corrupt": (["corrupt.jsonl"], {}, ValueError, r"cannot read .*corrupt\.jsonl.*JSON parse error"),
    "unknown-ending": (["what.xyz"], {}, ValueError, r"format of '.*what\.xyz'.*known: \.json, .*or set format"),
    "mixed": (["good.jsonl", "good.csv"], {}, ValueError, r"one format, got .*good\.jsonl.*good\.csv"),
    "unknown-format": (["good.csv"], {"format": "xml"}, ValueError, "unknown format 'xml'; available: auto, json"),
    "unknown-unit": (["good.csv"], {"text_document": "word"}, ValueError, "unknown text_document 'word'"),
    "no-path": ([], {}, ValueError, "paths is empty"),
}


@pytest.mark.parametrize(("names", "options", "error", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_cannot_be_used_say_why(tmp_path, cache, names, options, error, message):
    for name, text in CONTENTS.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        Files(paths=[str(tmp_path / name) for name in names], **options).load(cache)
