"""Caches: a damaged one is named and made again, a killed process leaves nothing for long, the umask gives modes."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

import numpy as np
from datasets import Dataset

from packmamba.data import checksums
from packmamba.data.checksums import damage_of, is_intact, seal
from packmamba.data.sources import RandomLengths
from packmamba.data.text.corpus import Corpus, tokenise
from packmamba.data.text.tokenizers import ByteTokenizer
from tests.data.resume.kill import SERVER

TEXTS = [f"document {index} " * 50 for index in range(200)]


def made(cache: Path) -> Corpus:
    checksums._read.clear()  # as another process would
    return tokenise(Dataset.from_dict({"text": TEXTS}), ByteTokenizer(), cache)


def overwrite(file: Path, begin: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(begin)
        opened.write(data)


DAMAGES = {
    "2,000 bytes of the tokens": lambda folder: overwrite(folder / "tokens.bin", 9_000, b"\0" * 2000),
    "the last token": lambda folder: overwrite(folder / "tokens.bin", 2 * 110_000, b"\x07"),
    "tokens cut off": lambda folder: os.truncate(folder / "tokens.bin", 1000),
    "tokens lost": lambda folder: (folder / "tokens.bin").unlink(),
    "an offset": lambda folder: overwrite(folder / "offsets.npy", 200, b"\x01"),
    "the description": lambda folder: overwrite(folder / "corpus.json", 30, b"00"),
    "the checksums": lambda folder: (folder / "checksums.json").write_text("{"),
    "no checksums, as earlier versions wrote": lambda folder: (folder / "checksums.json").unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tokens_are_named_and_made_again(cache: Path, name: str, caplog) -> None:
    corpus = made(cache)
    folder, expected = corpus.folder, np.array(corpus.tokens)
    DAMAGES[name](folder)
    with caplog.at_level(logging.WARNING):
        again = made(cache)
    assert f"Tokens in the cache will be made again: {folder}, " in caplog.text
    assert again.folder == folder
    assert np.array_equal(again.tokens, expected)
    assert damage_of(folder) is None
    caplog.clear()
    made(cache)
    assert "made again" not in caplog.text


def test_a_damaged_file_is_found_in_the_process_that_has_read_it_before(cache: Path) -> None:
    folder = made(cache).folder
    assert is_intact(folder, "Tokens")
    overwrite(folder / "tokens.bin", 100, b"x")
    assert damage_of(folder) == "is damaged: tokens.bin is not what was written"


def test_a_folder_is_read_whole_once_a_day_and_where_its_files_times_have_changed(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "data").write_bytes(b"x" * 100)
    seal(folder)
    read = []
    digest = checksums._digest
    monkeypatch.setattr(checksums, "_digest", lambda path: read.append(path.name) or digest(path))
    now = time.time()
    for later, expected in ((0, 1), (3600, 1), (25 * 3600, 2), (25 * 3600 + 1, 2), (0, 3)):  # a clock set back
        monkeypatch.setattr(checksums.time, "time", lambda later=later: now + later)
        assert damage_of(folder) is None
        assert len(read) == expected
    checksums._read.clear()
    assert damage_of(folder) is None
    assert len(read) == 3, "another process does not know that it was read"
    os.utime(folder / "data")
    assert damage_of(folder) is None
    assert len(read) == 4


def test_large_files_are_hashed_in_blocks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checksums, "_BLOCK", 1000)
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 20)
    digests = {checksums._digest(file)}
    for begin in (0, 999, 1000, 5119):
        overwrite(file, begin, bytes([file.read_bytes()[begin] ^ 1]))
        digests.add(checksums._digest(file))
    assert len(digests) == 5


def test_damaged_texts_of_a_source_are_made_again(cache: Path, caplog) -> None:
    source = RandomLengths(num_documents=50)
    expected = source.load(cache)["text"][:]
    (arrow,) = [path for path in cache.rglob("*.arrow") if path.parent.parent.name == "synthetic"]
    overwrite(arrow, arrow.stat().st_size // 2, b"\0" * 100)
    with caplog.at_level(logging.WARNING):
        assert source.load(cache)["text"][:] == expected
    assert "Texts in the cache will be made again" in caplog.text


def test_a_damaged_digest_is_computed_again(cache: Path) -> None:
    expected = made(cache).text_digest
    (memo,) = (cache / "digests").iterdir()
    for damage in ("", "0" * 32, memo.read_text().replace(expected[:4], "0000")):
        memo.write_text(damage)
        assert made(cache).text_digest == expected


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], ids=oct)
def test_caches_have_the_mode_that_the_umask_leaves(cache: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made(cache)
        made(cache)
    finally:
        os.umask(before)
    for path in [*(cache / "tokens").rglob("*"), *(cache / "digests").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


class Slow(ByteTokenizer):
    """Says that it has begun, and does not end."""

    def encode_texts(self, texts):
        Path(os.environ["SAYS"]).write_text("begun")
        time.sleep(60)
        return super().encode_texts(texts)


def tokenise_for_ever(cache: Path, says: Path) -> None:
    os.environ["SAYS"] = str(says)
    tokenise(Dataset.from_dict({"text": TEXTS}), Slow(), cache)


def test_what_a_killed_tokenisation_has_left_is_removed_by_the_next(cache: Path, tmp_path: Path) -> None:
    says = tmp_path / "says"
    process = SERVER.Process(target=tokenise_for_ever, args=(cache, says))
    process.start()
    while not says.exists():
        assert process.is_alive()
        time.sleep(0.01)
    folder = cache / "tokens"
    (left,) = folder.iterdir()
    corpus = made(cache)  # while it lives
    assert sorted(folder.iterdir()) == sorted([left, corpus.folder])
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert left.exists()
    tokenise(Dataset.from_dict({"text": TEXTS}), ByteTokenizer(add_bos=True), cache)
    assert not left.exists()
    assert len(list(folder.iterdir())) == 2


def test_a_read_only_cache_is_checked_and_used(cache: Path, monkeypatch) -> None:
    folder = made(cache).folder

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (folder / "verified.json").unlink(missing_ok=True)
    monkeypatch.setattr(checksums, "new_file", refuse)
    assert made(cache).folder == folder
    assert not (folder / "verified.json").exists()
    overwrite(folder / "tokens.bin", 100, b"x")
    checksums._read.clear()
    assert damage_of(folder) is not None


def test_checksums_cover_every_file_of_a_folder(cache: Path) -> None:
    folder = made(cache).folder
    sealed = json.loads((folder / "checksums.json").read_text())
    assert sorted(sealed) == ["corpus.json", "offsets.npy", "tokens.bin"]
    assert all(size == (folder / name).stat().st_size for name, (size, _) in sealed.items())
