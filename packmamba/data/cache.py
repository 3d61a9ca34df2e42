"""The on-disk cache: folders that appear complete or not at all, and the progress bar shown meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from packmamba.errors import MissingFileError

DEFAULT_CACHE_DIR = Path("~/.cache/packmamba")


def key_of(*parts: object) -> str:
    """A file name that is the same for the same parts."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def file_digest(file: str) -> str:
    """A hash of a file's bytes. Raises MissingFileError."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise MissingFileError(f"there is no file {file!r}")
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()[:32]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and disappears when it does not.

    Where another process was faster, its folder stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr; not drawn where stderr is no terminal, nor in a background thread."""
    console = Console(stderr=True)
    hidden = not console.is_terminal or threading.current_thread() is not threading.main_thread()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=hidden) as progress:
        yield progress
