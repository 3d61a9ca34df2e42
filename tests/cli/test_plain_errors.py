"""Errors of libraries and of the operating system become one line; what is a bug stays one."""

from __future__ import annotations

import errno
from argparse import ArgumentParser

import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from lightning.fabric.utilities.exceptions import MisconfigurationException

from packmamba.cli.parser_errors import explain, qualified, suggest
from packmamba.cli.plain_errors import plain_errors
from packmamba.errors import CannotRunError, MissingFileError, UsageError, UsageFileError


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            UsageFileError,
            "'runs/x': No space left .* make room",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "runs"),
            UsageFileError,
            "Read-only file system; make room, or name",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "c"), UsageFileError, "'c': Permission denied"),
        (MisconfigurationException("no\n  such thing"), UsageError, "trainer: no such thing"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), CannotRunError, "a smaller data.capacity"),
        (ValueError("`val_check_interval` (9) must be less"), UsageError, r"trainer: `val_check_interval` \(9\)"),
        (UsageError("capacity must be 2"), UsageError, "^data.capacity must be 2$"),
        (MissingFileError("embeddings 'x': gone"), MissingFileError, "^data.embeddings 'x': gone$"),
    ],
)
def test_what_a_user_can_mend_is_a_usage_error(error: Exception, kind: type[Exception], message: str) -> None:
    parser = ArgumentParser()
    for option in ("--data.capacity", "--data.embeddings"):
        parser.add_argument(option)
    with pytest.raises(kind, match=message), plain_errors([], lambda: parser):
        raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "broken"), RuntimeError("broken"), ValueError("broken"), KeyError(1)]
)
def test_a_bug_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, plain_errors([], lambda: None):
        raise error
    assert raised.value is error


def test_a_message_gets_the_whole_name_of_the_option_that_it_begins_with() -> None:
    options = ["data.seed", "best.filename", "last.filename", "seed_everything", "model.config.mamba1.d_state"]
    assert qualified("seed must be 0", options) == "data.seed must be 0"
    assert qualified("mamba1.d_state must be 4", options) == "model.config.mamba1.d_state must be 4"
    for unchanged in ("filename is empty", "data.seed must be 0", "seed_everything is -1", "the seed is", "", "'seed'"):
        assert qualified(unchanged, options) == unchanged


def test_an_option_is_suggested_from_its_group_or_by_its_last_part() -> None:
    options = ["trainer.max_steps", "trainer.plugins", "data.capacity", "name"]
    assert suggest("trainer.max_step", options) == "; did you mean trainer.max_steps?"
    assert suggest("capacity", options, "--") == "; did you mean --data.capacity?"
    assert suggest("trainer.foo", options) == ""


def test_a_message_of_another_form_passes_as_it_is() -> None:
    assert explain("something   new\nhappened", None, []) == "something new happened"
