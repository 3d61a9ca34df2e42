"""The data module's options: each in one group, each group's fields in the fingerprint, old checkpoints understood."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("lightning")

import torch

from packmamba.data import PackedDataModule
from packmamba.data.options import (
    DataOptions,
    DocumentOptions,
    HandlingOptions,
    OrderOptions,
    PackOptions,
    SourceOptions,
)
from packmamba.data.packers import ThresholdFiltering
from packmamba.data.resume.fingerprint import require_same, translated
from packmamba.data.sources import Files, PythonDocs
from packmamba.data.text.tokenizers import ByteTokenizer
from packmamba.errors import UsageError, UsageTypeError
from packmamba.visible_pairs import AttentionCost

FINGERPRINTED = (DocumentOptions, PackOptions, OrderOptions)
VERSION_1 = Path(__file__).parents[1] / "files" / "version_1"


def names(*groups: type) -> list[str]:
    return [field.name for group in groups for field in fields(group)]


def test_every_argument_of_the_data_module_is_in_one_group() -> None:
    arguments = set(inspect.signature(PackedDataModule).parameters)
    grouped = names(*FINGERPRINTED, HandlingOptions)
    assert len(grouped) == len(set(grouped))
    sources = {"train": "source", **{split: f"{split}_source" for split in ("val", "test", "predict")}}
    grouped += [sources.get(name, name) for name in names(SourceOptions)]
    assert set(grouped) - {"streaming"} == arguments  # the source says whether it is streamed


def test_the_fingerprint_is_every_field_of_its_groups() -> None:
    fingerprint = PackedDataModule().options.fingerprint
    assert list(fingerprint) == names(*FINGERPRINTED)


OTHERS: dict[str, Any] = {
    "streaming": False,
    "section_documents": 7,
    "max_documents": 9,
    "val_fraction": 0.5,
    "tokenizer": ByteTokenizer(add_bos=True),
    "train_on": "last_assistant",
    "strategy": "wrapped",
    "capacity": 17,
    "buffer": 3,
    "threshold_filtering": ThresholdFiltering(threshold=0.5),
    "embeddings": "embeddings.npy",
    "shuffle": False,
    "seed": 8,
    "balance": "tokens",
    "attention_costs": (AttentionCost(cost=0.5),),
}
"""Another value of each option that the order of documents depends on."""


@pytest.mark.parametrize("name", names(*FINGERPRINTED))
def test_another_value_of_an_option_that_matters_is_another_fingerprint(name: str, tmp_path: Path) -> None:
    """Each where it matters: in a stream, with the strategy, the balance or the source that looks at it."""
    options = DataOptions(
        sources=SourceOptions(train=PythonDocs()),
        documents=DocumentOptions(streaming=True, tokenizer=ByteTokenizer()),
        packs=PackOptions(strategy="threshold_filtering", threshold_filtering=ThresholdFiltering()),
        order=OrderOptions(balance="flops"),
        handling=HandlingOptions(cache_dir=tmp_path),
    )
    np.save(tmp_path / "embeddings.npy", np.ones((2, 3)))
    other = str(tmp_path / OTHERS[name]) if name == "embeddings" else OTHERS[name]
    group = next(group for group in ("documents", "packs", "order") if hasattr(getattr(options, group), name))
    changed = replace(options, **{group: replace(getattr(options, group), **{name: other})})
    assert changed.fingerprint[name] != options.fingerprint[name]
    with pytest.raises(UsageError, match=f"cannot resume.*{name} was"):
        require_same(options.fingerprint, changed.fingerprint)


def version_1(cost: float, window: int | None) -> PackedDataModule:
    """The data of tests/files/version_1/run.yaml, with the attention of its model."""
    return PackedDataModule(
        source=Files(paths=["documents.jsonl"]),
        capacity=256,
        buffer=64,
        balance="flops",
        seed=5,
        val_fraction=0.1,
        attention_costs=[AttentionCost(cost=cost, window=window)],
    )


def test_a_checkpoint_of_before_the_groups_has_the_fingerprint_of_its_options() -> None:
    saved = torch.load(VERSION_1 / "last.ckpt", weights_only=True)["PackedDataModule"]["fingerprint"]
    assert "attention_cost" in saved
    require_same(translated(saved), version_1(saved["attention_cost"], 32).options.fingerprint)
    for cost, window in ((0.1, 32), (saved["attention_cost"], None)):
        with pytest.raises(UsageError, match="attention_costs was"):
            require_same(translated(saved), version_1(cost, window).options.fingerprint)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"attention_cost": None, "attention_window": None}, None),
        ({"attention_cost": 0.0, "attention_window": 5}, []),
        ({"attention_cost": 0.5, "attention_window": None}, [{"cost": 0.5, "window": None}]),
    ],
)
def test_the_one_cost_of_attention_of_old_checkpoints_is_translated(old: dict[str, Any], new: Any) -> None:
    today = {"seed": 1, "attention_costs": new, "train_on": "all_assistant"}
    assert translated({"seed": 1} | old) == today
    assert translated({"seed": 1, "attention_costs": new}) == today
    assert translated(today | {"train_on": "last_assistant"}) == today | {"train_on": "last_assistant"}


def test_costs_of_another_type_and_missing_files_are_usage_errors() -> None:
    with pytest.raises(UsageTypeError, match=r"must hold values of type AttentionCost, got 0\.5"):
        PackedDataModule(attention_costs=[0.5])  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"embeddings 'nowhere.npy': there is no such file"):
        PackedDataModule(strategy="threshold_filtering", embeddings="nowhere.npy")
    with pytest.raises(UsageError, match=r"there is no chat template 'nowhere.jinja'"):
        PackedDataModule(chat_template="nowhere.jinja")


@pytest.mark.parametrize("capacity", [1, 0, -1, 2**31])
def test_packs_that_hold_no_target_or_too_many_tokens_are_refused(capacity: int) -> None:
    with pytest.raises(UsageError, match=f"capacity must be from 2 tokens.*2,147,483,647, got {capacity:,}"):
        PackedDataModule(capacity=capacity)
