"""Trains a byte-level BPE tokenizer on documents."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from packmamba.atomic import new_folder
from packmamba.errors import FileInTheWayError, UsageError

SPECIAL_TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]
"""The marks of a turn in packmamba's own chat template, so that each is one token."""

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS) + len(CHAT_TOKENS)
"""Every byte has a token, so that there is nothing a tokenizer cannot write."""


def require_trainable(vocab_size: int, folder: Path) -> None:
    """Raises UsageError for a vocabulary below `SMALLEST_VOCABULARY`, FileExistsError for a folder that exists."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"vocab_size must be at least {SMALLEST_VOCABULARY}, the 256 bytes and the special tokens; got {vocab_size}"
        )
    if folder.exists():
        raise FileInTheWayError(f"{str(folder)!r} is there already; name a new folder, or remove this one")


def train_bpe(dataset: Dataset, vocab_size: int, folder: Path) -> None:
    """Trains on every text of a source's dataset; writes what `BPETokenizer` and transformers' `AutoTokenizer` read.

    vocab_size: at most so many tokens; few or short texts give fewer. folder: must not exist. Shows a progress bar.
    Raises as `require_trainable` does.
    """
    require_trainable(vocab_size, folder)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS.values(), *CHAT_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(_batches(dataset), trainer, length=len(dataset))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **SPECIAL_TOKENS}
    with new_folder(folder) as temporary:
        tokenizer.save(str(temporary / "tokenizer.json"))
        (temporary / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _batches(dataset: Dataset) -> Iterator[list[str]]:
    for batch in cast(Iterator[dict[str, list[Any]]], dataset.iter(batch_size=1000)):
        yield [text for rows in zip(*batch.values(), strict=True) for text in texts_of(rows)]


def texts_of(row: tuple[Any, ...]) -> Iterator[str]:
    """Every text in a row of a source's dataset, that of messages included."""
    for value in row:
        if isinstance(value, str):
            yield value
        elif value is not None:
            said = (message.get("content") or message.get("value") for message in value)
            yield from (text for text in said if isinstance(text, str))
