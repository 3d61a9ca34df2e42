"""Local files load as one column of text, or say what is wrong with them."""

from __future__ import annotations

import gzip

import pytest

pytest.importorskip("datasets")

import pyarrow as pa
import pyarrow.parquet as pq

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
    "good.jsonl": b'{"text": "a", "n": 1}\n',
    "good.csv": b"text\na\n",
    "empty.jsonl": b"",
    "header.csv": b"text,n\n",
    "corrupt.jsonl": b'{"text": "a"}\n\n{"text": \n{"text": "c"}\n',
    "corrupt.jsonl.gz": gzip.compress(b'{"text": "a"}\nhello\n'),
    "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 1000)[:-20],
    "corrupt.json": b'[{"text": "a"},\n {"text": ]',
    "list.jsonl": b'{"text": "a"}\n["b"]\n',
    "types.jsonl": b'{"text": "a"}\n{"text": 5}\n',
    "types.json": b'[{"text": "a"}, {"text": ["b", "c"]}]',
    "talk.jsonl": b'{"messages": [{"role": "user", "content": "x"}]}\n{"messages": "oops"}\n',
    "ragged.csv": b"text,n\na,1\nb,2,3\n",
    "latin.txt": b"caf\xe9",
    "no.parquet": b"hello",
    "what.xyz": b"a",
}
BAD_FILES = {
    "missing-file": (["nothing-*.jsonl"], {}, FileNotFoundError, r"no file matches '.*nothing-\*\.jsonl'"),
    "missing-column": (["good.jsonl"], {"column": "body"}, ValueError, "no column 'body'; its columns: text, n"),
    "missing-in-csv": (
        ["good.csv"],
        {"column": "body"},
        ValueError,
        r"good\.csv has no column 'body'; its columns: text",
    ),
    "not-text": (["good.jsonl"], {"column": "n"}, ValueError, r"column 'n' of .*good\.jsonl holds int64, not text"),
    "not-always-text": (["types.jsonl"], {}, ValueError, r"; \S*types\.jsonl, line 2: 'text' is 5, not text"),
    "array": (["types.json"], {}, ValueError, r"types\.json, row 2: 'text' is \[\"b\", \"c\"\], not text"),
    "messages": (
        ["talk.jsonl"],
        {"messages_column": "messages"},
        ValueError,
        r"talk\.jsonl, line 2: 'messages' is \"oops",
    ),
    "empty-file": (["empty.jsonl"], {}, ValueError, r"empty\.jsonl are empty"),
    "no-row": (["header.csv"], {}, ValueError, r"header\.csv hold no row"),
    "corrupt": (["good.jsonl", "corrupt.jsonl"], {}, ValueError, r"read \S*corrupt\.jsonl, line 3: not JSON: Expec"),
    "corrupt-gz": (["corrupt.jsonl.gz"], {}, ValueError, r"cannot read \S*corrupt\.jsonl\.gz, line 2: not JSON"),
    "cut": (["cut.jsonl.gz"], {}, ValueError, r"cannot read \S*cut\.jsonl\.gz: Compressed file ended before"),
    "corrupt-array": (
        ["corrupt.json"],
        {},
        ValueError,
        r"corrupt\.json, line 2: not JSON: Expecting value at column 11",
    ),
    "no-object": (["list.jsonl"], {}, ValueError, r"list\.jsonl, line 2: expected an object, .*, got \[\"b\"\]"),
    "ragged": (["good.csv", "ragged.csv"], {}, ValueError, r"read \S*ragged\.csv: .* 2 fields in line 3, saw 3"),
    "not-utf8": (["latin.txt"], {}, ValueError, r"cannot read \S*latin\.txt: 'utf-8' codec"),
    "not-parquet": (["no.parquet"], {}, ValueError, r"cannot read \S*no\.parquet: Parquet file size is 5 bytes"),
    "unknown-ending": (["what.xyz"], {}, ValueError, r"format of '.*what\.xyz'.*known: \.json, .*or set format"),
    "mixed": (["good.jsonl", "good.csv"], {}, ValueError, r"one format, got .*good\.jsonl.*good\.csv"),
    "unknown-format": (["good.csv"], {"format": "xml"}, ValueError, "unknown format 'xml'; available: auto, json"),
    "unknown-unit": (["good.csv"], {"text_document": "word"}, ValueError, "unknown text_document 'word'"),
    "no-path": ([], {}, ValueError, "paths is empty"),
}


@pytest.mark.parametrize(("names", "options", "error", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_cannot_be_used_say_why(tmp_path, cache, names, options, error, message):
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        Files(paths=[str(tmp_path / name) for name in names], **options).load(cache)


def test_one_path_needs_no_list(write_jsonl, cache, tmp_path):
    (tmp_path / "mine").mkdir()
    path = write_jsonl(["first", "second"], "mine/documents.jsonl")
    for given in (path, tmp_path / "mine" / "documents.jsonl", f"{tmp_path}/mine/*.jsonl", str(tmp_path / "mine")):
        assert Files(paths=given).load(cache)["text"][:] == ["first", "second"], given
    assert Files(paths=path) == Files(paths=[path])


def test_a_folder_stands_for_the_documents_below_it(tmp_path, cache, caplog):
    folder = tmp_path / "my [texts]"
    for name in ("b/2.txt", "1.txt", "c.TXT", ".hidden.txt", ".git/3.txt", "picture.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(name)
    assert Files(paths=str(folder)).load(cache)["text"][:] == ["1.txt", "b/2.txt", "c.TXT"]
    assert "1 of the 4 files in" in caplog.text
    assert "'picture.png' for one; they are left out" in caplog.text
    both = Files(paths=[str(folder / "b"), str(folder / "1.txt")])
    assert both.load(cache)["text"][:] == ["b/2.txt", "1.txt"]
    assert len(Files(paths=str(folder), format="text").load(cache)) == 4


def test_a_folder_without_documents_or_of_save_to_disk_is_named(tmp_path, cache):
    (tmp_path / "a.png").write_text("")
    with pytest.raises(FileNotFoundError, match=r"the folder '.*' holds no file of documents \(1 others\); known"):
        Files(paths=str(tmp_path)).load(cache)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds dataset_info\.json, as save_to_disk writes it: read it by DatasetFol"):
        Files(paths=str(tmp_path)).load(cache)


@pytest.mark.parametrize("given", ["texts", "texts/*.txt", '["texts"]', "1.txt", "2024"])
def test_the_command_line_takes_a_path_or_a_list(given):
    from jsonargparse import ArgumentParser

    from packmamba.data.sources import Source

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    source = parser.instantiate_classes(parser.parse_args(["--source", "Files", "--source.paths", given])).source
    assert source.paths == [given.strip('[]"')]
    several = ["--source", "Files", "--source.paths+", "a", "--source.paths+", given]
    assert parser.instantiate_classes(parser.parse_args(several)).source.paths == ["a", given.strip('[]"')]
