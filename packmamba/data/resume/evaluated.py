"""What an evaluation counts, and whether a checkpoint is evaluated on data for which its numbers mean what they say.

Wrong: other token ids or other targets than the model learned, or documents that it was trained on. Slightly different:
documents that are cut at other places, where a piece begins without what came before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from packmamba.data.loader import PackedDataset
from packmamba.data.options import Split
from packmamba.data.resume.fingerprint import SavedData, translated
from packmamba.errors import UsageError
from packmamba.training.lightning_compat import current_stage

if TYPE_CHECKING:
    from packmamba.data.datamodule import PackedDataModule


class Differences(NamedTuple):
    """What is not as it was when a checkpoint was saved, in words."""

    wrong: list[str]
    """Differences that make the numbers wrong."""
    slight: list[str]
    """Differences that change them a little."""


def differences(
    saved: dict[str, Any],
    current: dict[str, Any],
    *,
    part_of_training: bool,
    saved_digests: dict[str, str | None] | None = None,
    digests: dict[str, str | None] | None = None,
) -> Differences:
    """saved, current: `DataOptions.fingerprint`. part_of_training: whether the documents are a part of the training
    source, which training left out. saved_digests, digests: `Corpus.digests` of the training documents, and of the
    source of those that are evaluated; None where they are not known yet."""
    decisive = ["tokenizer", *(["seed", "val_fraction"] if part_of_training else [])]
    wrong = _changed(decisive, saved, current)
    if part_of_training and not saved.get("val_fraction") and current.get("val_fraction"):
        wrong = [*_changed(["tokenizer"], saved, current), "no documents of data.source were held out from training"]
    cut = ["capacity", *(["strategy"] if "wrapped" in (saved.get("strategy"), current.get("strategy")) else [])]
    slight = [f"long documents are cut at other places: {changed}" for changed in _changed(cut, saved, current)]
    if saved_digests and digests:
        templates = saved_digests.get("chat_template"), digests.get("chat_template")
        if None not in templates and templates[0] != templates[1]:
            wrong.append("data.chat_template, or the tokenizer's own, has changed")
        same_documents = saved_digests.get("documents") == digests.get("documents")
        if part_of_training and not same_documents:
            wrong.append(
                "the documents of data.source have changed, so that those held out now may be among the trained ones; "
                "name other documents as data.val_source, data.test_source or data.predict_source"
            )
        elif same_documents and not part_of_training:
            slight.append("these are the documents that the checkpoint was trained on")
    return Differences(wrong, slight)


def compare_evaluated(datamodule: PackedDataModule, split: Split, saved: SavedData | None) -> list[str]:
    """What there is to say about the documents of a split that is evaluated: whose they are, and what is not as it was
    for the checkpoint that has been loaded. Nothing to the validation of a training.

    Raises UsageError where a difference makes the numbers wrong, unless `datamodule.allow_other_data`.
    """
    if current_stage(datamodule.trainer) in (None, "fit"):
        return []
    options, owner = datamodule.options, datamodule.splits.source_of(split)
    said = []
    if owner != split and split != "val":
        part = f"{options.documents.val_fraction} of data.source" if owner == "train" else "data.val_source"
        said.append(f"there is no data.{split}_source; these are the validation documents, {part}")
    if saved is None:
        return said
    found = differences(
        saved.fingerprint,
        options.fingerprint,
        part_of_training=owner == "train",
        saved_digests=saved.digests,
        digests=datamodule.documents(split).corpus.digests,
    )
    return said + require_comparable(found, allowed=datamodule.allow_other_data)


def check_options(state: dict[str, Any], datamodule: PackedDataModule, split: Split) -> None:
    """Raises what `compare_evaluated` will raise, as far as options tell, before any data is read. state: of the data
    module, as a checkpoint holds it."""
    fingerprint = state.get("fingerprint")
    if fingerprint is not None:
        part = datamodule.splits.source_of(split) == "train"
        found = differences(translated(fingerprint), datamodule.options.fingerprint, part_of_training=part)
        require_comparable(found, allowed=datamodule.allow_other_data)


def limit_to_whole_documents(trainer: Any, dataset: PackedDataset, split: Split) -> list[str]:
    """Where Lightning's `limit_…_batches` end an evaluation before its last batch, leaves out the documents of which
    some pieces would not be seen, and says how many are left.

    Raises UsageError where none is.
    """
    stage = split.partition("/")[0]
    name = f"limit_{stage}_batches"
    limit = 1.0 if trainer is None else getattr(trainer, name)
    batches = limit if isinstance(limit, int) else int(limit * len(dataset))
    if not batches or batches >= len(dataset):
        return []
    left, there = dataset.only_whole(batches), dataset.documents.rows.size
    if not left:
        raise UsageError(
            f"trainer.{name} {limit} ends before any of the {there:,} documents does; raise it"
            + (", or limit documents with data.max_val_documents instead" if stage == "val" else "")
        )
    return [f"trainer.{name} {limit} leaves {left:,} of {there:,} documents whole, and only these are counted"]


def require_comparable(found: Differences, *, allowed: bool) -> list[str]:
    """The differences to say. Raises UsageError for those that make the numbers wrong, unless they are allowed."""
    if found.wrong and not allowed:
        raise UsageError(
            "the checkpoint was trained with other data options, and its numbers would be wrong: "
            f"{'; '.join(found.wrong)}. Restore them, or insist with --allow_other_data"
        )
    return [*found.wrong, *found.slight]


def _changed(names: list[str], saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    return [
        f"data.{name} was {saved[name]!r} and is {current.get(name)!r}"
        for name in names
        if name in saved and saved[name] != current.get(name)
    ]
