"""Documents to packed batches. Read in this order: sources, tokenizers, chat, encode, corpus, packers, plan, collate,
loader, progress, datamodule; sections and streamed for documents that are read while training goes on."""

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
