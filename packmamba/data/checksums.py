"""Checksums of cached folders, so that a damaged one is made again and never trained on.

seal: `checksums.json` in a folder, with the size and a BLAKE2b hash of every file. A folder is read whole and compared
with it when one of its files has another size or time than when that was last done, and once a day: what overwrites
bytes changes the time, and a disk that loses bits does not. In between, looking at the files' times takes no time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from packmamba.atomic import new_file, remove_folder

_log = logging.getLogger(__name__)

_SEAL, _READ = "checksums.json", "verified.json"
_BLOCK = 2**26
"""Bytes that are hashed at once, by one thread."""
_READ_EVERY = 24 * 3600
"""Seconds after which a folder is read again though its files' times have not changed."""

_read: dict[Path, dict[str, Any]] = {}
"""What `_READ` holds of the folders that this process has read: for those it may not write to."""


def seal(folder: Path) -> None:
    """Writes the checksums of a complete folder."""
    contents = {name: [path.stat().st_size, _digest(path)] for name, path in _files(folder).items()}
    (folder / _SEAL).write_text(json.dumps(contents, indent=2))


def is_intact(folder: Path, what: str) -> bool:
    """Whether a sealed folder is there as it was written. A damaged one is named in a warning, and deleted.

    what: what the folder holds, for the warning.
    """
    if not folder.exists():
        return False
    damage = damage_of(folder)
    if damage is not None:
        _log.warning("%s in the cache will be made again: %s, %s", what, folder, damage)
        remove_folder(folder)
    return damage is None


def damage_of(folder: Path) -> str | None:
    """What is wrong with a folder, in words; None where it is as it was sealed."""
    try:
        sealed = json.loads((folder / _SEAL).read_text())
        expected = {str(name): (int(size), str(digest)) for name, (size, digest) in sealed.items()}
    except FileNotFoundError:
        return "has no checksums, so it is an earlier version's"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"has a damaged {_SEAL}"
    files = _files(folder)
    times = {name: _times(path) for name, path in files.items()}
    if missing := sorted(expected.keys() - files.keys()):
        return f"has lost {missing[0]}"
    if _read_lately(folder, times):
        return None
    for name, (size, digest) in expected.items():
        if times[name][0] != size:
            return f"is damaged: {name} has {times[name][0]:,} bytes, and was written with {size:,}"
        if _digest(files[name]) != digest:
            return f"is damaged: {name} is not what was written"
    _read[folder] = {"when": time.time(), "times": times}
    with contextlib.suppress(OSError), new_file(folder / _READ) as file:  # a shared cache may be read-only
        file.write(json.dumps(_read[folder]).encode())
    return None


def _read_lately(folder: Path, times: dict[str, list[int]]) -> bool:
    try:
        known = _read.get(folder) or json.loads((folder / _READ).read_text())
        return known["times"] == times and 0 <= time.time() - known["when"] < _READ_EVERY
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _files(folder: Path) -> dict[str, Path]:
    """The files that a seal covers, by their paths in the folder."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name not in (_SEAL, _READ) and not path.name.startswith(".")}


def _times(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _digest(path: Path) -> str:
    """A hash of a file's bytes: that of the hashes of its blocks, which several threads compute."""

    def of_block(begin: int) -> bytes:
        with path.open("rb") as file:
            file.seek(begin)
            return hashlib.blake2b(file.read(_BLOCK), digest_size=16).digest()

    begins = range(0, path.stat().st_size, _BLOCK)
    if len(begins) <= 1:
        blocks = [of_block(begin) for begin in begins]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            blocks = list(threads.map(of_block, begins))
    return hashlib.blake2b(b"".join(blocks), digest_size=16).hexdigest()
