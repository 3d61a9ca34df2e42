"""Text to token ids and back. One policy for BOS and EOS, explicit: `add_bos`, `add_eos`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from packmamba.errors import MissingFileError, MissingPackageError, UsageError


class Encoded(NamedTuple):
    """A text's token ids, and which of its characters each token is made from: int64 (T,) each."""

    ids: np.ndarray
    begins: np.ndarray
    """The first character."""
    ends: np.ndarray
    """The one after the last. A token that is a part of a character has all of it."""


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

    @property
    def is_slow(self) -> bool:
        """Whether encoding is worth several processes: not where it is done by threads, or in no time."""
        return True

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without BOS and EOS."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; BOS and EOS are left out."""

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """What `encode_texts` gives, and where in the text each token is; conversations need it.

        Raises UsageError if the tokenizer cannot tell.
        """
        raise UsageError(f"{self} does not say which characters a token is made from, which conversations need")

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that writes conversations out, if the tokenizer brings one."""
        return None

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of special tokens by the names that chat templates know: bos_token, eos_token, ..."""
        return {}

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
    def is_slow(self) -> bool:
        return False

    @property
    def fingerprint(self) -> str:
        return f"bytes, add_bos={self.add_bos}, add_eos={self.add_eos}"

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        encoded = []
        for ids in self.encode_texts(texts):
            character = np.cumsum((ids & 0xC0) != 0x80) - 1  # bytes 10xxxxxx continue a character
            encoded.append(Encoded(ids, character, character + 1))
        return encoded

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; BOS and EOS are left out, bytes that are not UTF-8 become U+FFFD.

        Raises UsageError for an id that does not exist.
        """
        values = np.asarray(ids, dtype=np.int64)
        wrong = values[(values < 0) | (values >= self.vocab_size)]
        if wrong.size:
            raise UsageError(f"token id {wrong[0]} does not exist; ids are 0 to {self.vocab_size - 1}")
        return values[values < 256].astype(np.uint8).tobytes().decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class FolderTokenizer(Tokenizer):
    """A tokenizer that lies in a folder, and the policy for its BOS and EOS."""

    path: str
    """A folder with a tokenizer."""
    add_bos: bool = False
    """Begin every document with the tokenizer's BOS."""
    add_eos: bool = True
    """End every document with the tokenizer's EOS, so that a model learns where documents end."""

    def __post_init__(self) -> None:
        for wanted, name, token in ((self.add_bos, "bos", self.bos_id), (self.add_eos, "eos", self.eos_id)):
            if wanted and token is None:
                raise UsageError(f"tokenizer {self.path!r} has no {name} token; set add_{name}=False")

    @property
    @abstractmethod
    def _state(self) -> str:
        """Everything that ids depend on."""

    @property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self._state.encode(), digest_size=16).hexdigest()
        policy = f"bos={self.bos_id if self.add_bos else None}, eos={self.eos_id if self.add_eos else None}"
        return f"{digest}, {policy}"

    def _without_framing(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        values = np.asarray(ids, dtype=np.int64)
        framing = [token for token in (self.bos_id, self.eos_id) if token is not None]
        return values[~np.isin(values, framing)].tolist()


@dataclass(frozen=True, kw_only=True)
class BPETokenizer(FolderTokenizer):
    """The `tokenizer.json` of a folder, as `packmamba tokenizer train` and transformers write it. Needs `tokenizers`.

    Which tokens are BOS and EOS, and the chat template, come from `tokenizer_config.json` beside it.

    Raises MissingFileError for a folder that does not exist, UsageError for one without a tokenizer that can be read,
    and for a policy that needs a token the tokenizer does not have.
    """

    @cached_property
    def _folder(self) -> Path:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise MissingFileError(f"there is no tokenizer folder {self.path!r}; `packmamba tokenizer train` makes one")
        return folder

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer as RustTokenizer

        file = self._folder / "tokenizer.json"
        if not file.is_file():
            there = ", ".join(sorted(path.name for path in self._folder.iterdir())) or "nothing"
            raise UsageError(f"the folder {self.path!r} holds no tokenizer.json, but {there}; choose another")
        try:
            return RustTokenizer.from_str(file.read_text())
        except Exception as error:  # the library raises nothing more specific
            raise UsageError(f"cannot read {str(file)!r} as a tokenizer: {error}") from error

    @cached_property
    def _config(self) -> dict[str, Any]:
        file = self._folder / "tokenizer_config.json"
        try:
            return json.loads(file.read_text()) if file.is_file() else {}
        except ValueError as error:
            raise UsageError(f"cannot read {str(file)!r}: {error}") from error

    @property
    def special_tokens(self) -> dict[str, str]:
        tokens = {name: self._config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        texts = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
        return {name: text for name, text in texts.items() if text is not None}

    @property
    def chat_template(self) -> str | None:
        file = self._folder / "chat_template.jinja"
        return file.read_text() if file.is_file() else self._config.get("chat_template")

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def bos_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._id_of("eos_token")

    def _id_of(self, name: str) -> int | None:
        tokenizer, text = self._tokenizer, self.special_tokens.get(name)
        return None if text is None else tokenizer.token_to_id(text)

    @property
    def is_slow(self) -> bool:
        return False

    @property
    def _state(self) -> str:
        return self._tokenizer.to_str()

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [_encoded(encoding.ids, encoding.offsets) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(self._without_framing(ids), skip_special_tokens=False)


def _encoded(ids: list[int], offsets: list[tuple[int, int]]) -> Encoded:
    begins, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    return Encoded(np.array(ids, dtype=np.int64), begins, ends)


@dataclass(frozen=True, kw_only=True)
class HFTokenizer(FolderTokenizer):
    """A tokenizer of Hugging Face `transformers`: a folder written by `save_pretrained`, or a name on the hub.

    Raises ImportError where `transformers` is not installed, MissingFileError where the tokenizer cannot be found,
    UsageError for a folder that holds none, and for a policy that needs a token the tokenizer does not have.
    """

    def __post_init__(self) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise MissingPackageError(
                f"HFTokenizer({self.path!r}) needs transformers: pip install 'packmamba[hf]'; "
                "ByteTokenizer needs nothing, BPETokenizer reads a tokenizer.json without it"
            )
        super().__post_init__()

    @cached_property
    def _tokenizer(self) -> Any:
        folder = Path(self.path).expanduser()
        # A name on the hub is `name` or `owner/name`; whatever else is a path, asking the hub would take a minute.
        on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.path) and not self.path.startswith(".")
        if not folder.is_dir() and (not on_hub or (len(folder.parts) > 1 and folder.parent.is_dir())):
            raise MissingFileError(f"there is no tokenizer folder {self.path!r}")
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else self.path)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            if folder.is_dir():
                there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
                raise UsageError(
                    f"the folder {self.path!r} holds no tokenizer that transformers can read, but {there}: {reason}"
                ) from error
            raise MissingFileError(
                f"there is no folder {self.path!r}, and no tokenizer of that name can be had from the hub: {reason}"
            ) from error

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
    def chat_template(self) -> str | None:
        templates = self._tokenizer.chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    @property
    def special_tokens(self) -> dict[str, str]:
        return {name: token for name, token in self._tokenizer.special_tokens_map.items() if isinstance(token, str)}

    @property
    def is_slow(self) -> bool:
        return not self._tokenizer.is_fast

    @property
    def _state(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        state = json.dumps(self._tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
        return f"{type(self._tokenizer).__name__} {state}"

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(ids, dtype=np.int64) for ids in encoded]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        if not self._tokenizer.is_fast:
            raise UsageError(
                f"tokenizer {self.path!r} is written in Python and does not say which characters a token is made from, "
                "which conversations need; use one with a tokenizer.json"
            )
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            _encoded(ids, offsets) for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(self._without_framing(ids))
