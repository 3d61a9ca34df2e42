"""Errors in what a person gave packmamba: a number out of range, a name that does not exist, a file that is missing.

The command line prints them as one line and leaves with 2; anything else is a bug and keeps its traceback. Each class
is also the built-in error that Python code expects, so `except ValueError` goes on working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
        raise UsageFileError(f"{option}:{where} {error.strerror or error}") from error


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


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'fit'?` where one of the names is close to the given one, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
