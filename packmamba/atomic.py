"""Files and folders that appear complete or not at all, on any filesystem, whatever kills the process that writes them.

temporary: what is being written, a hidden sibling of its target, named after the machine and process that writes it.
leftover: a temporary whose process was killed. The next write beside it, or `remove_leftovers`, deletes it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]*)-(?P<pid>\d+)-\d+\.partial")
_ABANDONED = 24 * 3600
"""Seconds without a write that make a temporary a leftover whose process cannot be asked, or seems to live."""
_HOST = re.sub(r"[^\w-]", "-", socket.gethostname())

_numbers = itertools.count()
_ours: set[Path] = set()
"""Temporaries of this process. An earlier process with its id, which containers give again, may have left others."""


@contextlib.contextmanager
def new_file(path: Path, *, keep: int = 1) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends well, and disappears when it does not.

    It is on the disk before it takes the name: a machine that loses power has the old file or the new one, whole.
    keep: files to keep, this one included; the one that was there before becomes `NAME-1.SUFFIX`, the one before it
    `NAME-2.SUFFIX`, and so on. There is a whole file at `path` at every moment after the first write.
    """
    with _temporary(path) as temporary:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _make_room(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and disappears when it does not.

    Where another process was faster, its folder stays.
    """
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.exists():
                raise


def remove_folder(path: Path) -> None:
    """Removes a folder, which is gone at once; its files go after it. Nothing where it is not there."""
    with _temporary(path) as temporary, contextlib.suppress(FileNotFoundError):
        os.rename(path, temporary)


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes have left in a folder. Processes that live keep theirs."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for path in [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]:
            if path not in _ours and _is_leftover(path):
                _delete(path)


def earlier(path: Path, number: int) -> Path:
    """Where `new_file` keeps the file that was `path` so many writes ago: `last-1.ckpt`."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """The name of a temporary of `path`, which is deleted afterwards if it is there. Leftovers beside it go first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{next(_numbers)}.partial")
    _ours.add(temporary)
    try:
        yield temporary
    finally:
        _delete(temporary)
        _ours.discard(temporary)


def _make_room(path: Path, keep: int) -> None:
    """Moves the files that stay one place on. `path` is there throughout, where the filesystem has hard links."""
    if keep < 2 or not path.is_file():
        return
    for number in range(keep - 1, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(earlier(path, number - 1), earlier(path, number))
    with _temporary(path) as second_name:
        try:
            os.link(path, second_name)
        except OSError:
            os.replace(path, earlier(path, 1))
        else:
            os.replace(second_name, earlier(path, 1))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every filesystem can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _is_leftover(path: Path) -> bool:
    found = _TEMPORARY.fullmatch(path.name)
    assert found is not None
    if found["host"] == _HOST and not _is_alive(int(found["pid"])):
        return True
    try:
        written = max(file.stat().st_mtime for file in (path, *(path.iterdir() if path.is_dir() else ())))
    except OSError:  # it is being deleted, or renamed
        return False
    return time.time() - written > _ABANDONED


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # `_ours` are not asked
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True
