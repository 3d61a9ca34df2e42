"""The on-disk cache: where it is, the names of its entries, and the progress bar shown while one is made."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from packmamba.atomic import new_folder
from packmamba.errors import MissingFileError

__all__ = ["DEFAULT_CACHE_DIR", "file_digest", "key_of", "new_folder", "progress_bar"]

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
