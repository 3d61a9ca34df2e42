"""How runs begin and end: their folder, `--resume auto`, what a stopped run prints, its exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from packmamba.errors import UsageError, usage_of
from packmamba.training.checkpoint_files import require_whole
from packmamba.training.checkpoints import LastCheckpoint
from packmamba.training.lightning_compat import end_other_ranks, rank_of_process
from packmamba.training.run_folder import (
    check_name,
    claim_version,
    command_to_go_on,
    newest_checkpoint,
    release_version,
)

_CHOSEN = "PACKMAMBA_RESUME_FROM"
"""The environment variable by which rank 0 tells the ranks that it starts from which checkpoint they go on."""


class GoingOn:
    """The folder of a run, the checkpoint that it goes on from, and what it says when it is stopped."""

    def __init__(self, given: Sequence[str]) -> None:
        """given: the command and its options, as they were typed."""
        self._given = given
        self._folder: tuple[Path, str] | None = None  # of all runs, and the name of this one in it
        self._version: int | None = None
        self._checkpoint: str | None = None

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "--resume",
            type=Literal["auto"] | None,
            default=None,
            help="auto: go on from the newest whole checkpoint of this --name, or begin where there is none; the "
            "same command starts a run and restarts it."
            if self._given[0] == "fit"
            else argparse.SUPPRESS,  # only so that a configuration of fit, where it is null, can be read
        )

    def check(self, values: Any, root: Path) -> None:
        """Raises UsageError for a name, `--resume` or `--ckpt_path` that cannot be used, and finds the checkpoint to
        resume. values: the command's options. root: the folder of all runs."""
        name, given, resume = check_name(values["name"]), values.get("ckpt_path"), values.get("resume")
        self._folder = root, name
        if resume and self._given[0] != "fit":
            raise UsageError(f"resume {resume!r} goes with fit; {self._given[0]} takes --ckpt_path FILE")
        if given and resume:
            raise UsageError(f"--resume auto chooses the checkpoint itself: leave out --ckpt_path {given}, or --resume")
        if given in ("last", "best"):
            newest, _ = newest_checkpoint(root, name)
            there = f"the newest of {name!r} is {newest}" if newest else f"{root / name} has none yet"
            raise UsageError(  # Lightning looks in the new run's folder, and begins at the first step without a word
                f"ckpt_path {given!r} is no file: give a checkpoint's path ({there}), or let fit --resume auto find it"
            )
        if given and Path(given).exists():
            require_whole(given)
        if resume == "auto":
            if values["trainer"].get("logger") not in (None, True):
                raise UsageError("--resume auto looks into runs/NAME, which is not trainer.logger's: give --ckpt_path")
            self._checkpoint = checkpoint_to_resume(root, name)

    def claim_version(self) -> int | None:
        """The number of this run's folder, which no other run gets; None on other ranks than 0, which write nothing."""
        if rank_of_process() != 0:
            return None
        assert self._folder is not None
        if self._version is None:
            with usage_of("--trainer.default_root_dir"):
                self._version = claim_version(*self._folder)
        return self._version

    def set_checkpoint(self, values: Any) -> None:
        """Has a command go on from the checkpoint that `check` has found."""
        if self._checkpoint is not None:
            values["ckpt_path"] = self._checkpoint

    @contextmanager
    def orderly_end(self, cli: Any) -> Iterator[None]:
        """Around a run: where it is stopped, says how to go on, ends the ranks that it has started, and leaves with the
        code that a shell gives the signal: 130 for Ctrl-C, 143 for SIGTERM. A folder without files is removed."""
        try:
            with _exit_at_sigterm():
                yield
        except BaseException as error:
            trainer = getattr(cli, "trainer", None)
            callbacks = () if trainer is None else trainer.checkpoint_callbacks
            stopped = [callback for callback in callbacks if isinstance(callback, LastCheckpoint)]
            if trainer is not None and trainer.is_global_zero:
                end_other_ranks(trainer)
                path = next((callback.stopped_with for callback in stopped if callback.stopped_with), None)
                if path and not isinstance(error, UsageError):  # which would only come again
                    print(f"go on with: {command_to_go_on(self._given, path)}", file=sys.stderr)
            if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
                raise SystemExit(128 + signal.SIGINT) from None  # Lightning leaves with 1
            for callback in stopped:
                # It may have ended a loader worker first, which raises an exception.
                if callback.stop_signal and not isinstance(error, UsageError):
                    raise SystemExit(128 + callback.stop_signal) from None
            raise
        finally:
            if self._version is not None and self._folder is not None:
                release_version(*self._folder, self._version)


def checkpoint_to_resume(root: Path, name: str) -> str | None:
    """What `--resume auto` goes on from: the newest whole checkpoint of the run's name, in any version, or None. Says
    which, and which newer ones are damaged."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and _CHOSEN in os.environ:
        return os.environ[_CHOSEN] or None
    checkpoint, damaged = newest_checkpoint(root, name)
    os.environ[_CHOSEN] = str(checkpoint or "")
    if rank_of_process() == 0:
        for path, damage in damaged.items():
            print(f"--resume auto: not from {path}: {damage}")
        if checkpoint is None:
            print(f"--resume auto: there is no checkpoint in {root / name} yet; training begins at the first step")
        else:
            print(f"--resume auto: goes on from {checkpoint}")
    return None if checkpoint is None else str(checkpoint)


@contextmanager
def _exit_at_sigterm() -> Iterator[None]:
    """SIGTERM leaves with 143 through every `finally`, so that what is half written is removed. Training, which does
    not stop in the middle of a step, has a handler of its own."""
    process = os.getpid()

    def leave(signum: int, frame: Any) -> None:
        if os.getpid() != process:  # a worker, which has nothing to remove
            os._exit(128 + signum)
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
