"""Errors in what a person gave packmamba: a number out of range, a name that does not exist, a file that is missing.

The command line prints them as one line and leaves with 2; anything else is a bug and keeps its traceback. Each class
is also the built-in error that Python code expects, so `except ValueError` goes on working.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UsageError(ValueError):
    """A value that is not accepted. The message names it and what would be accepted."""


class UsageTypeError(UsageError, TypeError):
    """A value of a type that is not accepted."""


class UsageFileError(UsageError, OSError):
    """A file or folder that is missing, in the way or unreadable."""


class MissingFileError(UsageFileError, FileNotFoundError):
    """A file or folder that is not there."""


class FileInTheWayError(UsageFileError, FileExistsError):
    """A file or folder that would have to be overwritten."""


class UnreachableError(UsageFileError, ConnectionError):
    """A data set that is neither reachable nor there already."""


class MissingPackageError(UsageError, ModuleNotFoundError):
    """An optional package that is not installed. The message says how to install it."""


class CannotRunError(UsageError, RuntimeError):
    """A named choice, such as an attention backend, that cannot run here. The message says why."""


class NonFiniteError(UsageError, RuntimeError):
    """A loss, a gradient or a weight that is NaN or infinite. The message says where, and how to go on."""


@contextmanager
def usage_of(option: str) -> Iterator[None]:
    """An OSError about the file or folder that an option names becomes a UsageFileError that names both."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        where = "" if error.filename is None else f" {str(error.filename)!r}"
        reason = _REASONS.get(error.errno or 0) or f"cannot be used: {error.strerror or error}"
        raise UsageFileError(f"{option}{where} {reason}; name another") from error


_REASONS = {
    errno.EEXIST: "is a file, not a folder",
    errno.ENOTDIR: "is in a file, not in a folder",
    errno.EISDIR: "is a folder, not a file",
    errno.ENOSPC: "cannot be written: no space left on the device",
}
"""What is wrong with a path, where the operating system says it so shortly that it takes a guess."""


def require_writable(folder: Path) -> None:
    """Makes a folder. Raises OSError where it cannot be made or written to."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@contextmanager
def usage_errors_behind() -> Iterator[None]:
    """Around a library that makes objects by their options, and wraps the errors of constructors in its own: raises the
    UsageError that is among the causes, or MissingPackageError for a package that an object needs."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, ImportError) as error:
        for cause in _causes(error):
            if isinstance(cause, UsageError):
                raise cause from error
            if isinstance(cause, ModuleNotFoundError) and not (cause.name or "").startswith("packmamba"):
                raise MissingPackageError(str(cause)) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def positive(text: str) -> int:
    """The `type` of an option that counts something, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'fit'?` where one of the names is close to the given one, else nothing."""
    names = list(names)
    longer = [other for other in names if len(name) > 2 and other.startswith(name)]
    close = difflib.get_close_matches(name, names, n=1) or (longer if len(longer) == 1 else [])
    return f"; did you mean {close[0]!r}?" if close else ""
