"""Documents to packed batches.

Source: where documents come from. Corpus: a source's documents as token ids on disk. Piece: a run of tokens of one
document. Pack: pieces trained side by side. Plan: which rank trains on which pack at which micro-step. Micro-step: one
batch on every rank; an optimiser step accumulates a few. Position: how much of the data is trained on.

Read in this order: sources/, text/, options, documents, packers/, pack_documents, plan, position, collate, loader,
datamodule; then resume/, which also reads streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packmamba.data.datamodule import PackedDataModule

__all__ = ["PackedDataModule"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that `packmamba.data.packers` needs neither Lightning nor datasets.
    if name == "PackedDataModule":
        from packmamba.data.datamodule import PackedDataModule

        return PackedDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
