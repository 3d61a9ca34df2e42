"""Where the documents of a pack begin and end, and the batch that carries them.

T tokens in a pack · S sequences (documents). Packed tensors are token-major without a batch dimension: (T, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from packmamba_kernels.schedule import Schedule, Segments, build_schedule
from torch import Tensor

_INT32_MAX = 2**31 - 1

# Pickled, what is on the CPU travels as NumPy arrays: a loader worker would send every tensor by a file descriptor of
# its own, two dozen a batch, which takes milliseconds.
_TABLES = tuple(field.name for field in fields(Segments) if field.name != "size")


def _is_on_cpu(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.device.type == "cpu"


@dataclass(frozen=True, eq=False, repr=False)
class Packing:
    """The document boundaries of one pack: frozen, validated, built once on the host, shared by every layer.

    Build it with `from_lengths`, `from_cu_seqlens` or `from_position_ids`, then `.to(device)`.
    """

    cu_seqlens: Tensor
    """int32 (S+1,): where documents begin; starts at 0, ends at T, strictly increasing; on the packing's device."""
    host_cu_seqlens: Tensor
    """The same numbers on the CPU, so that nothing has to be copied back from a GPU to learn a length."""
    max_seqlen: int
    """Tokens of the longest document."""
    num_tokens: int
    """T, tokens of the pack."""
    schedule: Schedule
    """The work items of the kernels."""

    @classmethod
    def from_lengths(cls, lengths: Sequence[int] | np.ndarray | Tensor) -> Packing:
        """A packing from the number of tokens of each document, in order.

        Raises ValueError if there is no document, one has fewer than 1 token (named with its index), or the total
        does not fit in int32; TypeError if a length is not an integer.
        """
        values = np.asarray(lengths.cpu() if isinstance(lengths, Tensor) else lengths)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"lengths must name at least one document in one dimension, got shape {values.shape}")
        if not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"lengths must be integers, got dtype {values.dtype}")
        if values.min() < 1:
            index = int(np.argmax(values < 1))
            raise ValueError(
                f"document {index} has length {values[index]}; every document needs at least one token, drop empty ones"
            )
        total = int(values.sum(dtype=np.int64))
        if total > _INT32_MAX:
            raise ValueError(f"lengths add up to {total} tokens; a pack holds at most {_INT32_MAX}")
        cu_seqlens = torch.zeros(values.size + 1, dtype=torch.int32)
        cu_seqlens[1:] = torch.from_numpy(np.cumsum(values, dtype=np.int32))
        return cls._build(cu_seqlens)

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor, *, num_tokens: int | None = None) -> Packing:
        """A packing from cumulative lengths, as flash-attn's varlen functions and Hugging Face's collators make them.

        cu_seqlens: int32 (S+1,). num_tokens: T, checked against the last entry where given. A tensor on a GPU is
        copied to the host once, and the packing lives on that GPU.

        Raises TypeError for another dtype, ValueError for another shape, a first entry that is not 0, entries that
        do not strictly increase (named with their index), or a last entry that is not `num_tokens`.
        """
        if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype != torch.int32:
            given = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
            raise TypeError(f"cu_seqlens must be a torch.int32 tensor, got {given}")
        if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2:
            raise ValueError(f"cu_seqlens must have shape (S+1,) with S >= 1, got {tuple(cu_seqlens.shape)}")
        host = cu_seqlens.detach().cpu()
        if host[0] != 0:
            raise ValueError(f"cu_seqlens must start at 0, got {int(host[0])}")
        steps = host.diff()
        if bool((steps <= 0).any()):
            i = int((steps <= 0).int().argmax())
            raise ValueError(
                f"cu_seqlens must strictly increase (a document has at least one token), "
                f"but entry {i} is {int(host[i])} and entry {i + 1} is {int(host[i + 1])}"
            )
        if num_tokens is not None and int(host[-1]) != num_tokens:
            raise ValueError(f"cu_seqlens ends at {int(host[-1])}, but the pack has T = {num_tokens} tokens")
        return cls._build(host.clone()).to(cu_seqlens.device)

    @classmethod
    def from_position_ids(cls, position_ids: Tensor) -> Packing:
        """A packing from within-document positions, (T,) or (1, T): a document begins wherever the position is 0.

        This is what Hugging Face's `DataCollatorWithFlattening` and TRL's packing emit. Raises TypeError if the ids
        are not integers, ValueError if the first is not 0 or one does not follow its predecessor (named with its
        index).
        """
        if position_ids.is_floating_point() or position_ids.dtype == torch.bool:
            raise TypeError(f"position_ids must be integers, got {position_ids.dtype}")
        if position_ids.ndim == 2 and position_ids.shape[0] == 1:
            position_ids = position_ids[0]
        if position_ids.ndim != 1 or position_ids.numel() == 0:
            raise ValueError(
                f"position_ids must have shape (T,) or (1, T) with T >= 1, got {tuple(position_ids.shape)}"
            )
        host = position_ids.detach().cpu().long()
        starts = host == 0
        if not bool(starts[0]):
            raise ValueError(f"position_ids must start at 0, got {int(host[0])}")
        broken = ~starts[1:] & (host[1:] != host[:-1] + 1)
        if bool(broken.any()):
            i = int(broken.int().argmax()) + 1
            raise ValueError(
                f"position_ids must count up by one or restart at 0, "
                f"but position {int(host[i])} at index {i} follows {int(host[i - 1])}"
            )
        ends = torch.tensor([host.numel()], dtype=torch.int64)
        return cls._build(torch.cat([starts.nonzero().squeeze(1), ends]).int()).to(position_ids.device)

    @classmethod
    def _build(cls, cu_seqlens: Tensor) -> Packing:
        return cls(
            cu_seqlens=cu_seqlens,
            host_cu_seqlens=cu_seqlens,
            max_seqlen=int(cu_seqlens.diff().max()),
            num_tokens=int(cu_seqlens[-1]),
            schedule=build_schedule(cu_seqlens),
        )

    @property
    def num_seqs(self) -> int:
        """S, documents of the pack."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def device(self) -> torch.device:
        return self.cu_seqlens.device

    @cached_property
    def lengths(self) -> Tensor:
        """int32 (S,): tokens of each document, on the packing's device."""
        return self.cu_seqlens.diff()

    @cached_property
    def host_lengths(self) -> list[int]:
        """Tokens of each document, as Python integers."""
        return self.host_cu_seqlens.diff().tolist()

    @cached_property
    def seq_idx(self) -> Tensor:
        """int32 (T,): the document of each token."""
        documents = torch.arange(self.num_seqs, dtype=torch.int32, device=self.device)
        return documents.repeat_interleave(self.lengths, output_size=self.num_tokens)

    @cached_property
    def position_ids(self) -> Tensor:
        """int32 (T,): the position of each token within its document."""
        tokens = torch.arange(self.num_tokens, dtype=torch.int32, device=self.device)
        return tokens - self.cu_seqlens[self.seq_idx]

    def unpack(self, x: Tensor) -> list[Tensor]:
        """Views of x (T, ...), one for each document. Raises ValueError if x does not have T rows."""
        if x.ndim == 0 or x.shape[0] != self.num_tokens:
            raise ValueError(f"x has shape {tuple(x.shape)}, but the packing has T = {self.num_tokens} tokens")
        return list(x.split(self.host_lengths))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Packing:
        """The same packing with its tensors on `device`; itself if it is there already."""
        cu_seqlens = self.cu_seqlens.to(device, non_blocking=non_blocking)
        if cu_seqlens is self.cu_seqlens:
            return self
        return Packing(
            cu_seqlens=cu_seqlens,
            host_cu_seqlens=self.host_cu_seqlens,
            max_seqlen=self.max_seqlen,
            num_tokens=self.num_tokens,
            schedule=self.schedule.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Packing:
        """The same packing in page-locked memory, for asynchronous copies to a GPU."""
        return Packing(
            cu_seqlens=self.cu_seqlens.pin_memory(),
            host_cu_seqlens=self.host_cu_seqlens,
            max_seqlen=self.max_seqlen,
            num_tokens=self.num_tokens,
            schedule=self.schedule.pin_memory(),
        )

    def __getstate__(self) -> dict[str, Any]:
        if self.device.type != "cpu":
            return self.__dict__
        levels = [(level.size, [getattr(level, name).numpy() for name in _TABLES]) for level in self.schedule.levels]
        return {"cu_seqlens": self.cu_seqlens.numpy(), "levels": levels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "levels" not in state:
            self.__dict__.update(state)
            return
        cu_seqlens = torch.from_numpy(state["cu_seqlens"])
        levels = (Segments(size, *map(torch.from_numpy, tables)) for size, tables in state["levels"])
        self.__dict__.update(
            cu_seqlens=cu_seqlens,
            host_cu_seqlens=cu_seqlens,
            max_seqlen=int(cu_seqlens.diff().max()),
            num_tokens=int(cu_seqlens[-1]),
            schedule=Schedule(int(cu_seqlens[-1]), tuple(levels)),
        )

    def __repr__(self) -> str:
        return f"Packing({self.num_seqs} documents, {self.num_tokens} tokens, longest {self.max_seqlen}, {self.device})"


@dataclass(frozen=True, eq=False, repr=False)
class PackedBatch:
    """One pack of documents, ready for a training step.

    Raises TypeError for ids that are not int64, ValueError where shapes disagree with the packing.
    """

    input_ids: Tensor
    """int64 (T,)."""
    labels: Tensor
    """int64 (T,): labels[t] is the token that position t should predict; -100 where there is none."""
    packing: Packing
    num_targets: int
    """Labels that are not -100."""
    num_padding: int = 0
    """Tokens that belong to no document: a row's filler, or the tail up to a fixed T."""
    step_targets: int | None = None
    """Valid targets of the whole optimiser step, over all ranks and micro-batches; None: of this batch alone."""
    doc_ids: Tensor | None = None
    """int64 (S,), on the CPU: which row of the dataset each document came from; -1 for padding. None where unknown."""
    real_lengths: Tensor | None = None
    """int64 (S,), on the CPU: tokens of each sequence, filler left out. None: where there is filler, it is unknown."""

    IGNORE_INDEX = -100
    """The label of a position without a target."""

    @classmethod
    def from_documents(cls, documents: Sequence[Sequence[int] | np.ndarray | Tensor]) -> PackedBatch:
        """Packs token-id lists in order; each document's last token has no target.

        Raises ValueError if there is no document or one is empty (named with its index).
        """
        rows = [torch.as_tensor(document, dtype=torch.int64) for document in documents]
        packing = Packing.from_lengths([len(row) for row in rows])
        input_ids = torch.cat(rows)
        labels = torch.full_like(input_ids, cls.IGNORE_INDEX)
        labels[:-1] = input_ids[1:]
        labels[packing.cu_seqlens[1:].long() - 1] = cls.IGNORE_INDEX
        return cls(input_ids, labels, packing, num_targets=packing.num_tokens - packing.num_seqs)

    def __post_init__(self) -> None:
        for name in ("input_ids", "labels"):
            value = getattr(self, name)
            if value.dtype != torch.int64:
                raise TypeError(f"{name} must be int64, got {value.dtype}")
            if value.shape != (self.packing.num_tokens,):
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, but the packing has T = {self.packing.num_tokens} tokens"
                )

    @property
    def num_tokens(self) -> int:
        """Real tokens of the batch, padding excluded."""
        return self.packing.num_tokens - self.num_padding

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch on `device`; `doc_ids` and `real_lengths` stay on the CPU."""
        return self._with(
            self.input_ids.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.packing.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory."""
        return self._with(self.input_ids.pin_memory(), self.labels.pin_memory(), self.packing.pin_memory())

    def _with(self, input_ids: Tensor, labels: Tensor, packing: Packing) -> PackedBatch:
        return replace(self, input_ids=input_ids, labels=labels, packing=packing)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value.numpy() if _is_on_cpu(value) else value for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self.__dict__[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    def __repr__(self) -> str:
        return f"PackedBatch({self.packing!r}, {self.num_targets} targets, {self.num_padding} padding)"
