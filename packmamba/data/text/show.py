"""Token ids as text in which one sees, without colour, which part has a loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import numpy as np
from datasets import Dataset

from packmamba.data.text.conversation import is_sharegpt
from packmamba.data.text.corpus import Corpus
from packmamba.data.text.tokenizers import Tokenizer

MARKS = ("[[", "]]")
"""Stand before and after text that has a loss."""


def marked_text(
    token_ids: Sequence[int] | np.ndarray,
    has_loss: Sequence[bool] | np.ndarray,
    tokenizer: Tokenizer,
    *,
    longest_run: int | None = None,
    most_runs: int | None = None,
) -> str:
    """Decoded tokens, those with a loss between `[[` and `]]`: `<|im_start|>assistant\\n[[It is five.<|im_end|>]]`.

    token_ids: (T,) of one document. has_loss: (T,), whether each of these tokens is predicted, itself, not the token
    after it; a document's first token never is. longest_run: a run of tokens alike is shortened in its middle to about
    so many characters; None: none is. most_runs: of more runs, those in the middle are left out.

    BOS and EOS, which `Tokenizer.decode` leaves out, are written as the tokenizer writes them, or `<bos>` and `<eos>`.
    Line breaks and tabs stay as they are; other characters that cannot be printed are escaped.
    """
    ids, losses = np.asarray(token_ids, dtype=np.int64), np.asarray(has_loss, dtype=bool)
    parts = []
    for begin, end in _runs(losses):
        text = _shortened(_printable(_decoded(ids[begin:end], tokenizer)), longest_run)
        parts.append(f"{MARKS[0]}{text}{MARKS[1]}" if losses[begin] else text)
    if most_runs is not None and len(parts) > most_runs:
        last = most_runs // 2
        parts[most_runs - last : len(parts) - last] = [" ... "]
    return "".join(parts)


def about_conversations(dataset: Dataset, corpus: Corpus, tokenizer: Tokenizer) -> str | None:
    """What is to be known of a source's conversations before training: their fields, where those are ShareGPT's, and
    one of them, shortened, with what has a loss marked. None where there are none.

    dataset: what the source loads. corpus: the same, tokenised.
    """
    if corpus.targets is None:
        return None
    said = []
    first = None
    if "messages" in dataset.column_names:
        rows = cast(Iterable[dict[str, Any]], dataset.select(range(min(len(dataset), _LOOKED_AT))))
        first = next((row["messages"][0] for row in rows if row["messages"]), None)
    if isinstance(first, dict) and is_sharegpt([name for name, value in first.items() if value is not None]):
        said.append("messages have ShareGPT's fields from and value; human is read as user, gpt as assistant")
    for row in range(min(len(corpus), _LOOKED_AT)):
        tokens = slice(*corpus.offsets[row : row + 2].tolist())
        has_loss = np.array(corpus.targets[tokens])
        has_loss[:1] = False
        if has_loss.any() and not has_loss[1:].all():
            text = marked_text(corpus.tokens[tokens], has_loss, tokenizer, longest_run=240, most_runs=12)
            said.append(f"row {row}, the part between {MARKS[0]} and {MARKS[1]} has a loss:\n{text}")
            break
    return "; ".join(said) or None


_LOOKED_AT = 1000
"""Rows among which a conversation is looked for."""


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where each run of equal values begins and ends."""
    bounds = np.flatnonzero(np.diff(values)) + 1
    begins = np.concatenate([[0], bounds]) if values.size else bounds
    return zip(begins.tolist(), [*begins[1:].tolist(), values.size], strict=False)


def _decoded(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    texts = tokenizer.special_tokens
    framing = {tokenizer.eos_id: texts.get("eos_token", "<eos>"), tokenizer.bos_id: texts.get("bos_token", "<bos>")}
    parts = []
    for special, run in groupby(ids.tolist(), key=framing.get):
        tokens = list(run)
        parts.append(tokenizer.decode(tokens) if special is None else special * len(tokens))
    return "".join(parts)


def _printable(text: str) -> str:
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )


def _shortened(text: str, longest: int | None) -> str:
    if longest is None or len(text) <= longest:
        return text
    half = max(1, longest // 2)
    return f"{text[:half]} ... {text[-half:]}"
