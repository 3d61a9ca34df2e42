"""What `packmamba validate` prints of several validation sets: a row for each, and one for all of them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from packmamba.metrics import DocumentLosses


def print_sets(sets: Mapping[str, DocumentLosses], everything: DocumentLosses) -> None:
    """sets: the losses of each set by its name. everything: those of all."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("set", no_wrap=True)
    for name in ("loss", "perplexity", "by document", "median", "documents"):
        table.add_column(name, justify="right")
    for name, losses in [*sets.items(), ("all", everything)]:
        numbers = losses.summary()
        perplexities = [numbers[key] for key in ("perplexity", "document_perplexity", "document_perplexity_median")]
        cells = [f"{numbers['loss']:.4f}", *(f"{value:,.2f}" for value in perplexities), f"{numbers['documents']:,.0f}"]
        table.add_row(name, *cells)
    Console().print(table)
