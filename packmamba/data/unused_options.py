"""Options of the data that are set, and that nothing looks at."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import fields, is_dataclass

from packmamba.data.options import SPLITS, DataOptions, DocumentOptions, PackOptions
from packmamba.data.packers import ThresholdFiltering
from packmamba.data.sources import Mixture, Source
from packmamba.errors import UsageError

FILES = ("data.embeddings", "data.chat_template")
"""Options that name a file, which nobody has in a configuration for the sake of another strategy or source."""


def refuse_unused(options: DataOptions, given: Container[str]) -> list[str]:
    """A line for each option that is not as by default and that these options make no use of.

    given: the options of the command line, as `--data.buffer`. Raises UsageError for the first that is among them, or
    names a file; others of a configuration file are said only, for a file may serve several strategies.
    """
    said = []
    for name, value, needed in _unused(options):
        message = f"{name} {value} does nothing: {needed}"
        if name in FILES or f"--{name}" in given:
            raise UsageError(f"{message}; leave it out, or change that")
        said.append(message)
    return said


def _unused(options: DataOptions) -> Iterator[tuple[str, object, str]]:
    """(option, its value, what would have to be) of the options that do nothing."""
    packs, documents = options.packs, options.documents
    strategy = f"data.strategy is {packs.strategy}, and only"
    if packs.embeddings is not None and packs.strategy != "threshold_filtering":
        yield "data.embeddings", packs.embeddings, f"{strategy} threshold_filtering compares embeddings"
    if packs.threshold_filtering not in (None, ThresholdFiltering()) and packs.strategy != "threshold_filtering":
        changed = packs.threshold_filtering
        for field in fields(ThresholdFiltering):
            if getattr(changed, field.name) != field.default:
                name = f"data.threshold_filtering.{field.name}"
                yield name, getattr(changed, field.name), f"{strategy} threshold_filtering looks at it"
    if packs.buffer != PackOptions.buffer and packs.strategy != "local_greedy":
        yield "data.buffer", packs.buffer, f"{strategy} local_greedy has a buffer"
    if documents.section_documents != DocumentOptions.section_documents and not documents.streaming:
        yield "data.section_documents", documents.section_documents, "data.source is not streamed, and has no sections"
    sources = [source for split in SPLITS if (source := options.sources.own(split)) is not None]
    if options.sources.chat_template is not None and not any(map(may_hold_conversations, sources)):
        needed = (
            "no source has conversations; they are named by messages_column, or prompt_column and completion_column"
        )
        yield "data.chat_template", options.sources.chat_template, needed
    most, has_validation = options.handling.max_val_documents, options.sources.val or documents.val_fraction
    if most is not None and not has_validation:
        yield "data.max_val_documents", most, "there are no validation documents"


def may_hold_conversations(source: Source) -> bool:
    """Whether a source names columns of conversations, or is one of which nothing is known here."""
    if isinstance(source, Mixture):
        return any(map(may_hold_conversations, source.sources))
    if not type(source).__module__.startswith("packmamba.") or not is_dataclass(source):
        return True
    columns = (field.name for field in fields(source) if field.name.endswith("_column"))
    return any(getattr(source, column) is not None for column in columns)
