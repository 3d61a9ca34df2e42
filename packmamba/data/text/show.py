"""Token ids as text in which one sees, without colour, which part has a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from packmamba.data.text.tokenizers import Tokenizer

MARKS = ("[[", "]]")
"""Stand before and after text that has a loss."""


def marked_text(
    token_ids: Sequence[int] | np.ndarray,
    has_loss: Sequence[bool] | np.ndarray,
    tokenizer: Tokenizer,
    *,
    longest_run: int | None = None,
) -> str:
    """Decoded tokens, those with a loss between `[[` and `]]`: `<|im_start|>assistant\\n[[It is five.<|im_end|>]]`.

    token_ids: (T,) of one document. has_loss: (T,), whether each of these tokens is predicted, itself, not the token
    after it; a document's first token never is. longest_run: a run of tokens alike is shortened in its middle to about
    so many characters; None: nothing is.

    BOS and EOS, which `Tokenizer.decode` leaves out, are written as the tokenizer writes them, or `<bos>` and `<eos>`.
    Line breaks and tabs stay as they are; other characters that cannot be printed are escaped.
    """
    ids, losses = np.asarray(token_ids, dtype=np.int64), np.asarray(has_loss, dtype=bool)
    parts = []
    for begin, end in _runs(losses):
        text = _shortened(_printable(_decoded(ids[begin:end], tokenizer)), longest_run)
        parts.append(f"{MARKS[0]}{text}{MARKS[1]}" if losses[begin] else text)
    return "".join(parts)


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
