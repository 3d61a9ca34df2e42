"""Errors of a command, however deep in a library they come up, as UsageErrors of one plain line."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException

from packmamba.cli.parser_errors import explain, options_of, qualified
from packmamba.errors import CannotRunError, UsageError, UsageFileError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What an operating system says of folders that are full, read-only or somebody else's."""


@contextmanager
def plain_errors(arguments: Sequence[str], parser: Callable[[], argparse.ArgumentParser | None]) -> Iterator[None]:
    """Raises UsageError for errors of the input: what a parser refuses, in plain words; what packmamba refuses, with
    the whole name of the option that the message begins with; what Lightning refuses; a full or read-only folder; and
    a model or pack that memory does not hold.

    arguments: the command line. parser: gives the one that knows the options, where it has been made.
    """
    try:
        yield
    except ArgumentError as error:
        options = [] if parser() is None else options_of(parser())  # pyright: ignore[reportArgumentType]
        raise UsageError(qualified(explain(str(error), parser(), arguments), options)) from error
    except UsageError as error:
        known = parser()
        if known is not None and len(error.args) == 1:
            error.args = (qualified(str(error), options_of(known)),)
        raise
    except MisconfigurationException as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from error
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = "" if error.filename is None else f"{str(error.filename)!r}: "
        raise UsageFileError(
            f"{where}{error.strerror}; make room, or name other folders: trainer.default_root_dir, data.cache_dir"
        ) from error
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise CannotRunError(
            "out of memory: a smaller data.capacity, or model.compute.recompute 'block', needs less; a smaller model "
            f"too ({' '.join(str(error).split())[:120]})"
        ) from error
    except ValueError as error:
        # The option that Lightning checks last, when it knows how many batches there are.
        if "val_check_interval" not in str(error):
            raise
        raise UsageError(f"trainer: {error}") from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
