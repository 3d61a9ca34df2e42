"""Configurations by the name they are shipped under."""

from __future__ import annotations

from pathlib import Path

import pytest

from packmamba.errors import MissingFileError
from packmamba.shipped_configs import config_names, configs_folder, find_config, given_configs, with_config_paths


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_file_of_configs_has_a_name() -> None:
    assert {"quickstart", "sft-quickstart", "mamba-130m", "mamba-1.4b", "hybrid-130m"} <= set(config_names())
    for name in config_names():
        assert find_config(name) == configs_folder() / f"{name}.yaml"


def test_a_file_goes_before_a_name_and_a_folder_does_not() -> None:
    Path("quickstart").mkdir()
    assert find_config("quickstart") == configs_folder() / "quickstart.yaml"
    Path("quickstart").rmdir()
    Path("quickstart").write_text("name: mine\n")
    assert find_config("quickstart") == Path("quickstart")


@pytest.mark.parametrize("text", ["quikstart", "configs/quickstart.yaml"])
def test_a_name_that_does_not_exist_is_refused_with_those_that_do(text: str) -> None:
    with pytest.raises(MissingFileError, match=f"'{text}'.*: hybrid-130m, mamba-1.4b.*; did you mean 'quickstart'"):
        find_config(text)


def test_names_become_paths_wherever_a_configuration_is_given() -> None:
    path = str(configs_folder() / "mamba-130m.yaml")
    for given in (["--config", "mamba-130m"], ["-c", "mamba-130m"], ["--config=mamba-130m"]):
        replaced = with_config_paths(["fit", *given, "--name", "quickstart"])
        assert given_configs(replaced) == [path]
        assert replaced[-2:] == ["--name", "quickstart"]
    for text in ("{name: tiny}", "name: tiny", "-"):
        assert with_config_paths(["--config", text]) == ["--config", text]
