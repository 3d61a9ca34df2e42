"""A measurement says where it was made."""

from __future__ import annotations

import json
import subprocess

import torch

from packmamba import environment


def test_names_device_versions_and_commit():
    described = json.loads(json.dumps(environment.describe_environment("cpu")))
    assert described["device_type"] == "cpu"
    assert described["device"]
    assert described["versions"]["torch"] == torch.__version__
    assert described["versions"]["flash-attn"] is None or isinstance(described["versions"]["flash-attn"], str)
    assert described["threads"] == torch.get_num_threads()


def git(folder, *arguments):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_knows_the_commit_and_uncommitted_changes(tmp_path, monkeypatch):
    tracked = tmp_path / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(tracked))
    assert environment._commit() == (None, None)
    git(tmp_path, "init", "-q")
    tracked.write_text("1")
    assert environment._commit() == (None, None)  # installed inside somebody else's checkout
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert environment._commit() == (head, False)
    tracked.write_text("2")
    assert environment._commit() == (head, True)
