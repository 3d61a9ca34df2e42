"""The folders of runs, `ROOT/NAME/version_N`: which names are accepted, who gets which number, where to go on from."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from packmamba.atomic import remove_leftovers
from packmamba.errors import UsageError
from packmamba.training.checkpoint_files import first_whole, newest_first

_VERSION = re.compile(r"version_(\d+)")


def check_name(name: str) -> str:
    """The name of a run, if its folder lies below the root of all runs. `sweep/a` is a folder in a folder.

    Raises UsageError for one that is empty, absolute, leads out, or has characters that a file name should not have.
    """
    parts = name.split("/")
    wrong = (
        any(part.strip() in ("", ".", "..") or part.startswith("~") or _VERSION.fullmatch(part) for part in parts)
        or any(ord(character) < 32 or character in '\\:*?"<>|' for character in name)
        or any(len(part.encode()) > 255 for part in parts)
    )
    if wrong:
        raise UsageError(
            f"--name {name!r} does not name a folder below the folder of all runs: give one like 'tiny', or "
            "'sweep/tiny'"
        )
    return name


def claim_version(root: Path, name: str) -> int:
    """Makes `root/name/version_N` for a new N, above all that are there, and returns N. Processes that call this at the
    same time get different ones. What killed saves have left in earlier versions is removed.

    Raises OSError where no folder can be made.
    """
    folder = root / check_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    versions = _versions(folder)
    for version in versions.values():
        remove_leftovers(version / "checkpoints")
    number = max(versions, default=-1) + 1
    while True:
        try:
            (folder / f"version_{number}").mkdir()
        except FileExistsError:
            number += 1
        except FileNotFoundError:  # another run has just failed, and removed the folder it had made
            folder.mkdir(parents=True, exist_ok=True)
        else:
            return number


def release_version(root: Path, name: str, number: int) -> None:
    """Removes the folders of a run that has ended before it wrote anything; those with files stay."""
    with contextlib.suppress(OSError):
        (root / name / f"version_{number}").rmdir()
        (root / name).rmdir()


def newest_checkpoint(root: Path, name: str) -> tuple[Path | None, dict[Path, str]]:
    """The whole checkpoint of a run's name that was written last, in whichever version, or None; and what is wrong with
    each newer one."""
    versions = _versions(root / check_name(name)).values()
    return first_whole(newest_first(path for version in versions for path in version.glob("checkpoints/*.ckpt")))


def command_to_go_on(arguments: Sequence[str], checkpoint: str) -> str:
    """The command line `arguments`, going on from a checkpoint."""
    kept, skip = [], False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif option in ("--ckpt_path", "--resume"):
            skip = not equals
        else:
            kept.append(argument)
    return shlex.join(["packmamba", *kept, "--ckpt_path", checkpoint])


def _versions(folder: Path) -> dict[int, Path]:
    """The versions of a run's name, by their numbers."""
    if not folder.is_dir():
        return {}
    found = ((_VERSION.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match and path.is_dir()}
