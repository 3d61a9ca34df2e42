"""Checkpoint files: written whole or not at all, checked before they are read, and the newest whole one of a folder.

whole: the file's table of contents is there, and each part of it has the CRC-32 that was written with it. That tells a
file that was cut off, overwritten in part, or has a flipped bit; torch.load reads past the latter two without a word.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from packmamba.atomic import new_file, remove_leftovers
from packmamba.errors import UsageFileError

_found_whole: set[tuple[str, int, int]] = set()
"""Files that this process has read and found whole: path, size, time of the last change."""


class DamagedCheckpointError(UsageFileError):
    """A checkpoint that is cut off, overwritten in part, or no checkpoint. The message names the newest whole one."""


class CheckpointNotSavedError(UsageFileError):
    """A checkpoint that could not be written. The one that it would have replaced is as it was."""


def damage_of(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file, in words; None where it is whole. Reads all of it, once a process.

    A folder, which a sharded strategy writes, counts as whole where the file is there that Lightning writes last.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return None if (path / "meta.pt").is_file() else "it is a folder without meta.pt, so not written to the end"
        stat = path.stat()
        key = str(path.resolve()), stat.st_size, stat.st_mtime_ns
        if key in _found_whole:
            return None
        if not stat.st_size:
            return "it is empty"
        if not zipfile.is_zipfile(path):
            return "it is cut off, or no checkpoint: it is no zip archive"
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return f"its contents are damaged: {error}"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    if part is not None:
        return f"its contents are damaged: the checksum of {part} is wrong"
    _found_whole.add(key)
    return None


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is there, complete and unchanged since it was written."""
    return damage_of(path) is None


def newest_whole(folder: str | Path) -> Path | None:
    """The whole checkpoint of a folder (`*.ckpt`) that was written last; None where there is none."""
    return first_whole(newest_first(Path(folder).glob("*.ckpt")))[0]


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Checkpoints by the time of their last write, newest first; those that have just been renamed are left out."""
    times = {}
    for path in paths:
        try:
            times[path] = path.stat().st_mtime_ns
        except OSError:
            continue
    return sorted(times, key=lambda path: (times[path], path.name), reverse=True)


def first_whole(paths: Iterable[Path]) -> tuple[Path | None, dict[Path, str]]:
    """The first whole checkpoint, or None; and what is wrong with each of those before it."""
    damaged = {}
    for path in paths:
        damage = damage_of(path)
        if damage is None:
            return path, damaged
        damaged[path] = damage
    return None, damaged


def require_whole(path: str | Path) -> None:
    """Raises DamagedCheckpointError unless a checkpoint is whole. It names the newest whole one beside it."""
    damage = damage_of(path)
    if damage is not None:
        raise DamagedCheckpointError(f"the checkpoint {str(path)!r} cannot be used: {damage}; {_instead(Path(path))}")


def _instead(path: Path) -> str:
    other = newest_whole(path.parent)
    return "there is no whole one beside it" if other is None else f"the newest whole one beside it is {str(other)!r}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, on the target's filesystem, and has it on the disk before it takes the
    name; reads only whole ones.

    `LastCheckpoint` and `BestCheckpoint` put it in the place of Lightning's own, which they leave where it is another:
    `Trainer(plugins=[AtomicCheckpointIO()])` does the same for other checkpoint callbacks. Paths of object stores
    (`s3://…`) go the way they went, for a store replaces whole objects.
    """

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        """Files to keep of a path, as `atomic.new_file` says; 1 of those that are not here."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Raises CheckpointNotSavedError where it cannot be written, as on a full disk; what was there stays."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            with new_file(path, keep=self.kept.get(str(path), 1)) as file:
                output: Any = _Output(file)
                try:
                    torch.save(checkpoint, output)
                except RuntimeError:  # torch's own, about positions in the file, in the place of the write's
                    if output.error is None:
                        raise
                    raise output.error from None
        except OSError as error:
            raise CheckpointNotSavedError(
                f"the checkpoint {str(path)!r} could not be written: {error.strerror or error}; {_instead(path)}"
            ) from error

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Raises DamagedCheckpointError unless the file is whole."""
        local = "://" not in str(path)
        if local and Path(path).exists():
            require_whole(path)
        return super().load_checkpoint(path, *arguments, **options)

    def remove_checkpoint(self, path: str | Path) -> None:
        super().remove_checkpoint(path)
        if "://" not in str(path):
            remove_leftovers(Path(path).parent)


class _Output:
    """A file for torch.save, which keeps a failed write's error: torch replaces it by one of its own."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
