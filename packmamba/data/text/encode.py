"""Rows of a source to token ids, and which of them are to be predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packmamba.data.text.chat import ChatTemplate
from packmamba.data.text.conversation import (
    ConversationError,
    TrainOn,
    are_trained,
    as_template_sees,
    conversation,
    tools_of,
)
from packmamba.data.text.tokenizers import Encoded, Tokenizer
from packmamba.errors import UsageError


class RowError(UsageError):
    """A row of a source that cannot be encoded; the message names it by its number."""


@dataclass(frozen=True)
class EncodedRows:
    """A few documents, one after the other."""

    tokens: np.ndarray
    """(T,), of the encoder's dtype."""
    lengths: np.ndarray
    """int64 (documents,): tokens of each."""
    targets: np.ndarray | None
    """bool (T,): whether a token is to be predicted; None: all of them."""
    late_turns: int = 0
    """Assistant's turns whose first token begins before them."""


@dataclass(frozen=True)
class Encoder:
    """How rows become token ids. Small enough to travel to another process."""

    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    """Writes conversations out; None for sources that hold plain text alone."""
    train_on: TrainOn = "all_assistant"
    """Which of the assistant's messages are to be predicted."""

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integers that hold every token id."""
        return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.uint32)

    def encode(self, rows: Mapping[str, Sequence[Any]], first_row: int) -> EncodedRows:
        """rows: columns of a source; first_row: the number of the first, for errors.

        An empty text gets no BOS or EOS either and becomes an empty document, as does a missing value. A conversation
        gets a BOS or EOS only where the template has not written it; its EOS is to be predicted where the last message
        is.

        Raises RowError for a conversation that cannot be written out, UsageError for a tokenizer that gives
        ids beyond its vocabulary.
        """
        if self.template is None:
            documents = self._plain(rows["text"])
            return EncodedRows(self._checked(documents), np.array([ids.size for ids in documents]), None)
        plain: dict[int, str | None] = {}
        written: dict[int, tuple[str, np.ndarray, bool]] = {}
        for number, values in enumerate(zip(*rows.values(), strict=True)):
            row = dict(zip(rows, values, strict=True))
            try:
                if messages := conversation(row):
                    trained = are_trained(messages, self.train_on)
                    text, spans = self.template.write(as_template_sees(messages), tools=tools_of(row), trained=trained)
                    written[number] = text, np.array(spans, dtype=np.int64).reshape(-1, 2), trained[-1]
                else:
                    plain[number] = row.get("text")
            except ConversationError as error:
                raise RowError(f"row {first_row + number}: {error}") from error
        documents = dict(zip(plain, self._plain(list(plain.values())), strict=True))
        targets = {number: np.ones(ids.size, dtype=bool) for number, ids in documents.items()}
        texts = [text for text, _, _ in written.values()]
        encoded = self.tokenizer.encode_with_offsets(texts) if texts else []
        late_turns = 0
        for (number, (_, spans, answered)), tokens in zip(written.items(), encoded, strict=True):
            documents[number], targets[number] = self._framed(tokens.ids, _inside(tokens, spans), answered)
            late_turns += _late_turns(tokens, spans)
        order = range(len(documents))
        return EncodedRows(
            self._checked([documents[number] for number in order]),
            np.array([documents[number].size for number in order]),
            np.concatenate([targets[number] for number in order]),
            late_turns,
        )

    def _plain(self, texts: Sequence[str | None]) -> list[np.ndarray]:
        encoded = self.tokenizer.encode_texts([text or "" for text in texts]) if texts else []
        return [self.tokenizer.frame(ids) if len(ids) else np.empty(0, np.int64) for ids in encoded]

    def _framed(self, ids: np.ndarray, targets: np.ndarray, answered: bool) -> tuple[np.ndarray, np.ndarray]:
        """A conversation's ids and targets with BOS and EOS as the policy says, and none of them twice."""
        tokenizer = self.tokenizer
        bos = [tokenizer.bos_id] if ids.size and tokenizer.add_bos and ids[0] != tokenizer.bos_id else []
        eos = [tokenizer.eos_id] if ids.size and tokenizer.add_eos and ids[-1] != tokenizer.eos_id else []
        ids = np.concatenate([np.array(bos, np.int64), ids.astype(np.int64), np.array(eos, np.int64)])
        return ids, np.concatenate([np.zeros(len(bos), bool), targets, np.full(len(eos), answered)])

    def _checked(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        tokens = np.concatenate(documents)
        if (largest := int(tokens.max(initial=0))) >= self.tokenizer.vocab_size:
            raise UsageError(
                f"the tokenizer gave token id {largest}, but its vocabulary has {self.tokenizer.vocab_size} entries"
            )
        return tokens.astype(self.dtype)


def _inside(tokens: Encoded, spans: np.ndarray) -> np.ndarray:
    """bool (T,): tokens that are wholly inside one of the spans of characters (K, 2), which are in order."""
    if not spans.size:
        return np.zeros(tokens.ids.size, dtype=bool)
    # Some tokenizers leave spaces out of their offsets: a token of spaces alone has its end for both.
    begins = np.where(tokens.begins == tokens.ends, tokens.begins - 1, tokens.begins)
    span = np.searchsorted(spans[:, 0], begins, side="right") - 1
    return (span >= 0) & (tokens.ends <= spans[span, 1])


def _late_turns(tokens: Encoded, spans: np.ndarray) -> int:
    """Spans that begin inside a token, which is then not wholly inside."""
    before = np.searchsorted(tokens.begins, spans[:, 0], side="left") - 1
    return int(((before >= 0) & (tokens.ends[before] > spans[:, 0])).sum()) if tokens.ids.size else 0
