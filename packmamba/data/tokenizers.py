"""Text to token ids and back. One policy for BOS and EOS, explicit: `add_bos`, `add_eos`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


class Tokenizer(ABC):
    """Turns a text into token ids, with a BOS before and an EOS after it where the policy says so.

    No other special tokens are added. A document's first token is never predicted, because nothing precedes it: with
    `add_bos` the first token of the text is.
    """

    add_bos: bool
    add_eos: bool

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Every token id is smaller."""

    @property
    @abstractmethod
    def bos_id(self) -> int | None:
        """The token that begins a document, whether or not the policy adds it; None if there is none."""

    @property
    @abstractmethod
    def eos_id(self) -> int | None:
        """The token that ends a document, whether or not the policy adds it; None if there is none."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The same for tokenizers that give the same ids."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without BOS and EOS."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; BOS and EOS are left out."""

    def encode(self, text: str) -> np.ndarray:
        """int64 (T,): the ids of one document, BOS and EOS as the policy says."""
        return self.frame(self.encode_texts([text])[0])

    def frame(self, ids: np.ndarray) -> np.ndarray:
        """int64: ids with BOS and EOS as the policy says."""
        before = [self.bos_id] if self.add_bos else []
        after = [self.eos_id] if self.add_eos else []
        return np.concatenate([np.array(before, np.int64), np.asarray(ids, np.int64), np.array(after, np.int64)])

    @property
    def pad_id(self) -> int:
        """What fills rows and tails; its value does not matter, for it is never a target."""
        return 0 if self.eos_id is None else self.eos_id


@dataclass(frozen=True, kw_only=True)
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes: ids 0 to 255 are the bytes, 256 is BOS, 257 is EOS. Needs no file, loses nothing."""

    add_bos: bool = False
    """Begin every document with BOS."""
    add_eos: bool = True
    """End every document with EOS, so that a model learns where documents end."""

    @property
    def vocab_size(self) -> int:
        return 258

    @property
    def bos_id(self) -> int:
        return 256

    @property
    def eos_id(self) -> int:
        return 257

    @property
    def fingerprint(self) -> str:
        return f"bytes, add_bos={self.add_bos}, add_eos={self.add_eos}"

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; BOS and EOS are left out, bytes that are not UTF-8 become U+FFFD.

        Raises ValueError for an id that does not exist.
        """
        values = np.asarray(ids, dtype=np.int64)
        wrong = values[(values < 0) | (values >= self.vocab_size)]
        if wrong.size:
            raise ValueError(f"token id {wrong[0]} does not exist; ids are 0 to {self.vocab_size - 1}")
        return values[values < 256].astype(np.uint8).tobytes().decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class HFTokenizer(Tokenizer):
    """A tokenizer of Hugging Face `transformers`: a folder written by `save_pretrained`, or a name on the hub.

    Raises ImportError where `transformers` is not installed, ValueError for a policy that needs a token the tokenizer
    does not have, OSError where the tokenizer cannot be found.
    """

    path: str
    """A folder, or a name on the hub."""
    add_bos: bool = False
    """Begin every document with the tokenizer's BOS."""
    add_eos: bool = True
    """End every document with the tokenizer's EOS, so that a model learns where documents end."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise ImportError(
                f"HFTokenizer({self.path!r}) needs transformers: pip install 'packmamba[hf]'; "
                "ByteTokenizer needs nothing"
            )
        for wanted, name, token in ((self.add_bos, "bos", self.bos_id), (self.add_eos, "eos", self.eos_id)):
            if wanted and token is None:
                raise ValueError(f"tokenizer {self.path!r} has no {name} token; set add_{name}=False")

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path)

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    @property
    def bos_id(self) -> int | None:
        return self._tokenizer.bos_token_id

    @property
    def eos_id(self) -> int | None:
        return self._tokenizer.eos_token_id

    @property
    def fingerprint(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        state = json.dumps(self._tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
        digest = hashlib.blake2b(f"{type(self._tokenizer).__name__} {state}".encode(), digest_size=16).hexdigest()
        policy = f"bos={self.bos_id if self.add_bos else None}, eos={self.eos_id if self.add_eos else None}"
        return f"{digest}, {policy}"

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(ids, dtype=np.int64) for ids in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        values = np.asarray(ids, dtype=np.int64)
        return self._tokenizer.decode(values[~np.isin(values, self._framing)].tolist())

    @property
    def _framing(self) -> list[int]:
        return [token for token in (self.bos_id, self.eos_id) if token is not None]
