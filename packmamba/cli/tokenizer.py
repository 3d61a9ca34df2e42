"""`packmamba tokenizer train`: a byte-level BPE tokenizer, trained on any source of documents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from datasets import Dataset
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from packmamba.cli.plain_errors import plain_errors
from packmamba.data.cache import DEFAULT_CACHE_DIR
from packmamba.data.sources import PythonDocs, Source
from packmamba.data.text.bpe import require_trainable, texts_of, train_bpe
from packmamba.data.text.tokenizers import BPETokenizer
from packmamba.errors import UsageError, usage_errors_behind, usage_of

MEASURED = 10_000
"""Documents at most whose bytes and tokens are counted, spread over all."""


def main(argv: Sequence[str]) -> int:
    """argv: the command's options. Raises UsageError for options that cannot be understood or used, files that are not
    there, and a folder that is there already."""
    arguments = _parse(argv)
    output = Path(arguments.output).expanduser()
    require_trainable(arguments.vocab_size, output)
    if arguments.max_documents is not None and arguments.max_documents < 1:
        raise UsageError(f"--max_documents must be at least 1, got {arguments.max_documents}")
    dataset = arguments.source.load(Path(arguments.cache_dir).expanduser())
    if arguments.max_documents is not None:
        dataset = dataset.select(range(min(arguments.max_documents, len(dataset))))
    started = time.perf_counter()
    with usage_of("--output"):
        train_bpe(dataset, arguments.vocab_size, output)
    seconds = time.perf_counter() - started
    tokenizer = BPETokenizer(path=str(output))
    print(f"documents        {len(dataset):,}")
    print(f"vocabulary       {tokenizer.vocab_size:,} tokens" + _fewer(tokenizer.vocab_size, arguments.vocab_size))
    print(f"bytes per token  {_bytes_per_token(dataset, tokenizer):.2f}")
    print(f"time             {seconds:.1f} s")
    print(f"tokenizer        {arguments.output}")
    print(
        "next             packmamba fit --config quickstart \\\n"
        f"    --data.tokenizer BPETokenizer --data.tokenizer.path {arguments.output} \\\n"
        f"    --model.config.vocab_size {tokenizer.vocab_size}"
    )
    return 0


def _parse(argv: Sequence[str]) -> Namespace:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="packmamba tokenizer", description="Makes tokenizers.", exit_on_error=False, allow_abbrev=False
    )
    train = ArgumentParser(
        description="Trains a byte-level BPE tokenizer on the documents of a source.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    for name, kind, default, text in (
        ("source", Source, PythonDocs(), "Documents to train on."),
        ("vocab_size", int, 8192, "Tokens at most; the 256 bytes and four special tokens are among them."),
        ("max_documents", int | None, None, "Train on the first so many documents."),
        ("cache_dir", str, str(DEFAULT_CACHE_DIR), "Folder for what sources have to build."),
    ):
        train.add_argument(f"--{name}", type=kind, default=default, help=text)
    train.usage = "packmamba tokenizer train --output FOLDER [--OPTION VALUE ...]"
    train.add_argument("--output", type=str, required=True, help="A new folder for the tokenizer.")
    parser.add_subcommands().add_subcommand("train", train, help="train a tokenizer")
    with plain_errors(argv, lambda: train):
        values = parser.parse_args(list(argv))
        with usage_errors_behind():
            return cast(Namespace, parser.instantiate_classes(values))["train"]


def _fewer(size: int, wanted: int) -> str:
    return "" if size == wanted else f" (fewer than {wanted:,}: the documents have no more pairs to merge)"


def _bytes_per_token(dataset: Dataset, tokenizer: BPETokenizer) -> float:
    chosen = np.linspace(0, len(dataset) - 1, min(MEASURED, len(dataset)), dtype=np.int64)
    num_bytes = num_tokens = 0
    for batch in dataset.select(chosen).iter(batch_size=1000):
        rows = zip(*cast(dict[str, list], batch).values(), strict=True)
        texts = [text for row in rows for text in texts_of(row)]
        num_bytes += sum(len(text.encode()) for text in texts)
        num_tokens += sum(ids.size for ids in tokenizer.encode_texts(texts))
    return num_bytes / max(1, num_tokens)
