"""Folders of runs: no two runs get one, none lies elsewhere, the newest whole checkpoint is found in all versions."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

from packmamba.errors import UsageError
from packmamba.training.run_folder import (
    check_name,
    claim_version,
    command_to_go_on,
    newest_checkpoint,
    release_version,
)
from tests.training.rank_runs import SERVER
from tests.training.test_checkpoint_files import save


def claim_together(root: Path, barrier: Any, numbers: Any) -> None:
    for run in range(25):
        barrier.wait(60)
        number = claim_version(root, f"run-{run}")
        numbers.put((run, number))


def test_runs_of_one_name_that_start_together_get_different_folders(tmp_path: Path) -> None:
    barrier, numbers = SERVER.Barrier(4), SERVER.Queue()
    processes = [SERVER.Process(target=claim_together, args=(tmp_path, barrier, numbers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = sorted(numbers.get(timeout=60) for _ in range(100))
    for process in processes:
        process.join()
    assert found == [(run, number) for run in range(25) for number in range(4)]


def test_a_new_version_is_above_all_that_are_there(tmp_path: Path) -> None:
    for name in ("version_0", "version_3", "version_x", "versions_9"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "version_7").write_text("a file")
    assert [claim_version(tmp_path, "run") for _ in range(5)] == [4, 5, 6, 8, 9]


def test_a_claim_removes_what_killed_saves_have_left_in_earlier_versions(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    save(folder / "last.ckpt", 1)
    left = folder / f".last.ckpt.elsewhere-{os.getpid()}-0.partial"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 10**6,) * 2)
    assert claim_version(tmp_path, "run") == 1
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path: Path) -> None:
    release_version(tmp_path, "run", claim_version(tmp_path, "run"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run" / f"version_{claim_version(tmp_path, 'run')}" / "config.yaml").write_text("")
    release_version(tmp_path, "run", 0)
    assert (tmp_path / "run" / "version_0" / "config.yaml").exists()


WRONG = ["", " ", ".", "..", "../../x", "a/../b", "/tmp/x", "a//b", "a/", "/", "~", "~root/x", "a\nb", "a\\b", "a:b"]
WRONG += ["version_3", "a/version_3", "a" * 256, "\0"]


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"--name .* does not name a folder below the folder of all runs") as error:
        claim_version(tmp_path / "runs", name)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tiny", "sweep/a", "1e-3 lr=0.1", "größe", "a..b", "v1.2", "version"])
def test_other_names_are_taken_as_they_are(name: str) -> None:
    assert check_name(name) == name


def test_the_newest_whole_checkpoint_is_found_in_all_versions(tmp_path: Path) -> None:
    paths = [tmp_path / "run" / f"version_{n}" / "checkpoints" / name for n, name in enumerate(["last.ckpt"] * 3)]
    assert newest_checkpoint(tmp_path, "run") == (None, {})
    for age, path in enumerate([paths[0], paths[2], paths[1]]):
        save(path, age)
        os.utime(path, (1000 + age,) * 2)
    assert newest_checkpoint(tmp_path, "run") == (paths[1], {})
    paths[1].write_bytes(b"")
    assert newest_checkpoint(tmp_path, "run") == (paths[2], {paths[1]: "it is empty"})
    paths[2].write_bytes(paths[2].read_bytes()[:-1000])
    whole, damaged = newest_checkpoint(tmp_path, "run")
    assert whole == paths[0]
    assert set(damaged) == {paths[1], paths[2]}
    assert newest_checkpoint(tmp_path, "other") == (None, {})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("fit --config a.yaml", "fit --config a.yaml"),
        ("fit --ckpt_path old.ckpt --config a.yaml", "fit --config a.yaml"),
        ("fit --ckpt_path=old.ckpt --config a.yaml --resume auto", "fit --config a.yaml"),
        ("fit --data.source.paths '[\"a b\"]' --resume=auto", "fit --data.source.paths '[\"a b\"]'"),
    ],
)
def test_the_command_to_go_on_with_is_the_one_that_was_given(given: str, kept: str) -> None:
    command = command_to_go_on(shlex.split(given), "runs/my run/last.ckpt")
    assert shlex.split(command) == ["packmamba", *shlex.split(kept), "--ckpt_path", "runs/my run/last.ckpt"]
