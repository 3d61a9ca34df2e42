"""Checkpoint files: SIGKILL and a full disk at any moment of a save lose nothing, and a damaged file is never read."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

import torch

from packmamba.atomic import earlier
from packmamba.training.checkpoint_files import (
    AtomicCheckpointIO,
    CheckpointNotSavedError,
    DamagedCheckpointError,
    damage_of,
    is_whole,
    newest_whole,
    require_whole,
)
from tests.training.rank_runs import SERVER


def state(number: int, size: int = 100_000) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((size,), float(number))}


def save(path: Path, number: int, keep: int = 2, size: int = 100_000) -> None:
    files = AtomicCheckpointIO()
    files.kept[str(path)] = keep
    files.save_checkpoint(state(number, size), path)


def load(path: Path) -> int:
    """The number of the save that a file is of, of which each byte is there."""
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert bool((loaded["weights"] == loaded["number"]).all())
    return loaded["number"]


def save_for_ever(path: Path, said: Path) -> None:
    """Saves, and after each save says which one it was."""
    torch.set_num_threads(1)
    number = int(said.read_text() or 0)
    while True:
        number += 1
        save(path, number, size=500_000)
        said.write_text(str(number))


@pytest.mark.slow
def test_sixty_kills_while_saving_lose_no_save(tmp_path: Path) -> None:
    folder, said = tmp_path / "run", tmp_path / "said"
    path = folder / "last.ckpt"
    said.write_text("")
    rng = random.Random(0)
    killed_in_a_save = 0
    for _ in range(60):
        before = said.read_text()
        process = SERVER.Process(target=save_for_ever, args=(path, said))
        process.start()
        while said.read_text() in ("", before):
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed_in_a_save += any(folder.glob(".*.partial"))
        newest = newest_whole(folder)
        assert newest == path, "there was a moment without a whole last.ckpt"
        with contextlib.suppress(ValueError):  # killed while it said so
            assert load(newest) >= int(said.read_text())
        assert is_whole(earlier(path, 1))
        said.write_text(str(load(newest)))
    assert killed_in_a_save > 20, "hardly any kill was in the middle of a save"
    save(path, 0)
    assert sorted(file.name for file in folder.iterdir()) == ["last-1.ckpt", "last.ckpt"], "leftovers stay"


def save_with_a_limit(path: Path, size: int, result: Any) -> None:
    """The save of a process that may write only so many bytes to a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        save(path, 3)
        result.put("saved")
    except CheckpointNotSavedError as error:
        result.put(str(error))


@pytest.mark.parametrize("limit", [0, 1, 500, 50_000, 399_000])
def test_a_save_that_cannot_be_written_to_the_end_leaves_what_was_there(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files fails writes as a full disk does, and needs no rights."""
    path = tmp_path / "last.ckpt"
    save(path, 1)
    save(path, 2)
    result = SERVER.Queue()
    process = SERVER.Process(target=save_with_a_limit, args=(path, limit, result))
    process.start()
    message = result.get(timeout=60)
    process.join()
    assert message.startswith(f"the checkpoint {str(path)!r} could not be written: File too large; the newest whole")
    assert (load(path), load(earlier(path, 1))) == (2, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last-1.ckpt", "last.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A filesystem of 3 MB, other than that of the temporary folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoints_that_were_there(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    for number in range(1, 5):
        save(path, number, size=200_000)
    for size in (400_000, 600_000, 10_000_000):
        with pytest.raises(CheckpointNotSavedError, match="could not be written: No space left on device"):
            save(path, 5, size=size)
        assert (load(path), load(earlier(path, 1))) == (4, 3)
    assert len(list(small_disk.iterdir())) == 2
    save(path, 6)
    assert load(path) == 6


def test_a_number_of_earlier_files_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for number in range(6):
        save(path, number, keep=4)
    names = ["last.ckpt", "last-1.ckpt", "last-2.ckpt", "last-3.ckpt"]
    assert [load(tmp_path / name) for name in names] == [5, 4, 3, 2]
    assert len(list(tmp_path.iterdir())) == 4


def test_earlier_files_are_kept_where_there_are_no_hard_links(tmp_path: Path, monkeypatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for number in range(3):
        save(tmp_path / "last.ckpt", number)
    assert [load(tmp_path / name) for name in ("last.ckpt", "last-1.ckpt")] == [2, 1]


def test_a_checkpoint_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(tmp_path / "last.ckpt", 0)
    finally:
        os.umask(before)
    assert (tmp_path / "last.ckpt").stat().st_mode & 0o777 == 0o640


DAMAGES = {
    "empty": (lambda data: b"", "it is empty"),
    "cut off": (lambda data: data[: len(data) // 2], "it is cut off, or no checkpoint"),
    "one bit flipped in a tensor": (lambda data: _flip(data, len(data) // 2), "the checksum of .*data/0 is wrong"),
    "2,000 bytes overwritten": (lambda data: data[:9000] + b"x" * 2000 + data[11_000:], "the checksum of .* is wrong"),
    "its beginning overwritten": (lambda data: b"x" * 200 + data[200:], "its contents are damaged"),
    "no checkpoint": (lambda data: b"<html>", "no zip archive"),
}


def _flip(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_with_the_newest_whole_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "last.ckpt"
    save(path, 1)
    save(path, 2)
    damage, message = DAMAGES[name]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedCheckpointError, match=message) as error:
        AtomicCheckpointIO().load_checkpoint(path)
    assert str(error.value).endswith(f"the newest whole one beside it is {str(earlier(path, 1))!r}")
    assert newest_whole(tmp_path) == earlier(path, 1)


def test_where_no_checkpoint_is_whole_none_is_named(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match="there is no whole one beside it"):
        require_whole(tmp_path / "last.ckpt")
    assert damage_of(tmp_path / "lost.ckpt") == "it cannot be read: No such file or directory"


def test_a_file_that_has_changed_since_it_was_found_whole_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(path, 1)
    assert is_whole(path)
    path.write_bytes(_flip(path.read_bytes(), 20_000))
    assert not is_whole(path)


def test_a_save_removes_what_killed_ones_have_left_but_not_what_others_are_writing(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(path, 1)
    (host,) = {part.rpartition("-")[0].rpartition("-")[0] for part in [_temporary_name(path)]}
    dead = subprocess.Popen(["true"])
    dead.wait()
    killed, alive = (path.with_name(f"{host}-{pid}-0.partial") for pid in (dead.pid, os.getppid()))
    elsewhere = path.with_name(".last.ckpt.other-1-0.partial")
    for file in (killed, alive, elsewhere):
        file.write_bytes(b"half")
    save(path, 2)
    assert not killed.exists()
    assert alive.exists()
    assert elsewhere.exists()
    os.utime(elsewhere, (time.time() - 2 * 24 * 3600,) * 2)
    save(path, 3)
    assert not elsewhere.exists()


def _temporary_name(path: Path) -> str:
    """The name under which this process writes a file."""
    from packmamba.atomic import new_file

    with new_file(path.with_name("last.ckpt"), keep=2):
        return next(file.name for file in path.parent.iterdir() if file.name.endswith(".partial"))
