"""Options of the data that nothing looks at are refused, or said where a file may have them for another purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("datasets")

from packmamba.data import PackedDataModule
from packmamba.data.packers import ThresholdFiltering
from packmamba.data.sources import Files, Mixture, PythonDocs
from packmamba.data.unused_options import may_hold_conversations, refuse_unused
from packmamba.errors import UsageError

UNUSED: dict[str, dict[str, Any]] = {
    "data.buffer": {"buffer": 5},
    "data.threshold_filtering.window": {"threshold_filtering": ThresholdFiltering(window=3)},
    "data.section_documents": {"section_documents": 5},
    "data.max_val_documents": {"max_val_documents": 5, "val_fraction": 0.0},
}


@pytest.mark.parametrize("name", UNUSED)
def test_an_option_that_does_nothing_is_refused_on_the_command_line_and_said_of_a_file(name: str) -> None:
    options = PackedDataModule(**UNUSED[name]).options
    with pytest.raises(UsageError, match=f"{name} . does nothing: .*leave it out"):
        refuse_unused(options, {f"--{name}"})
    (said,) = refuse_unused(options, {"--config"})
    assert said.startswith(f"{name} ")
    assert "does nothing" in said


@pytest.mark.parametrize("name", ["embeddings", "chat_template"])
def test_a_file_that_nothing_reads_is_always_refused(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", np.ones((2, 2)))
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    file: Any = str(tmp_path / ("embeddings.npy" if name == "embeddings" else "chat.jinja"))
    with pytest.raises(UsageError, match=rf"data\.{name} .*{Path(file).name} does nothing"):
        refuse_unused(PackedDataModule(**{name: file}).options, ())


def test_options_that_something_looks_at_are_not_named(tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", np.ones((2, 2)))
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    several: tuple[dict[str, Any], ...] = (
        {},
        {"strategy": "local_greedy", "buffer": 5},
        {
            "strategy": "threshold_filtering",
            "threshold_filtering": ThresholdFiltering(window=3),
            "embeddings": str(tmp_path / "embeddings.npy"),
        },
        {
            "source": Files(paths=["a.jsonl"], messages_column="messages"),
            "chat_template": str(tmp_path / "chat.jinja"),
            "max_val_documents": 5,
        },
        {"source": Files(paths=["a.jsonl"], streaming=True), "section_documents": 5, "val_fraction": 0.0},
    )
    for options in several:
        assert refuse_unused(PackedDataModule(**options).options, ()) == []


def test_conversations_are_found_in_mixtures_and_supposed_in_unknown_sources() -> None:
    chat = Files(paths=["a.jsonl"], prompt_column="a", completion_column="b")
    assert may_hold_conversations(Mixture(sources=[PythonDocs(), chat], weights=[1, 1]))
    assert not may_hold_conversations(Mixture(sources=[PythonDocs(), PythonDocs()], weights=[1, 1]))

    class Own(PythonDocs):
        pass

    assert may_hold_conversations(Own())
