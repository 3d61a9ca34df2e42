"""Where the documents of a pack begin and end, and the batch that carries them.

T tokens in a pack · S sequences (documents). Packed tensors are token-major without a batch dimension: (T, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from packmamba_kernels.schedule import Schedule, build_schedule
from torch import Tensor

from packmamba.errors import UsageError, UsageTypeError

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False, repr=False)
class Packing:
    """The document boundaries of one pack: frozen, validated, built once on the host, shared by every layer.

    Build it with `from_lengths`, `from_cu_seqlens` or `from_position_ids`, then `.to(device)`.
    """

    schedule: Schedule
    """The segments that the kernels work on, and cu_seqlens, in one tensor on the packing's device."""
    host_cu_seqlens: Tensor
    """int32 (S+1,): cu_seqlens on the CPU, so that nothing has to be copied back from a GPU to learn a length."""
    max_seqlen: int
    """Tokens of the longest document."""

    @classmethod
    def from_lengths(cls, lengths: Sequence[int] | np.ndarray | Tensor) -> Packing:
        """A packing from the number of tokens of each document, in order.

        Raises ValueError if there is no document, one has fewer than 1 token (named with its index), or the total
        does not fit in int32; TypeError if a length is not an integer.
        """
        values = np.asarray(lengths.cpu() if isinstance(lengths, Tensor) else lengths)
        if values.ndim != 1 or values.size == 0:
            raise UsageError(f"lengths must name at least one document in one dimension, got shape {values.shape}")
        if not np.issubdtype(values.dtype, np.integer):
            raise UsageTypeError(f"lengths must be integers, got dtype {values.dtype}")
        if values.min() < 1:
            index = int(np.argmax(values < 1))
            raise UsageError(
                f"document {index} has length {values[index]}; every document needs at least one token, drop empty ones"
            )
        total = int(values.sum(dtype=np.int64))
        if total > _INT32_MAX:
            raise UsageError(f"lengths add up to {total} tokens; a pack holds at most {_INT32_MAX}")
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
            raise UsageTypeError(f"cu_seqlens must be a torch.int32 tensor, got {given}")
        if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2:
            raise UsageError(f"cu_seqlens must have shape (S+1,) with S >= 1, got {tuple(cu_seqlens.shape)}")
        host = cu_seqlens.detach().cpu()
        if host[0] != 0:
            raise UsageError(f"cu_seqlens must start at 0, got {int(host[0])}")
        steps = host.diff()
        if bool((steps <= 0).any()):
            i = int((steps <= 0).int().argmax())
            raise UsageError(
                f"cu_seqlens must strictly increase (a document has at least one token), "
                f"but entry {i} is {int(host[i])} and entry {i + 1} is {int(host[i + 1])}"
            )
        if num_tokens is not None and int(host[-1]) != num_tokens:
            raise UsageError(f"cu_seqlens ends at {int(host[-1])}, but the pack has T = {num_tokens} tokens")
        return cls._build(host).to(cu_seqlens.device)

    @classmethod
    def from_position_ids(cls, position_ids: Tensor) -> Packing:
        """A packing from within-document positions, (T,) or (1, T): a document begins wherever the position is 0.

        This is what Hugging Face's `DataCollatorWithFlattening` and TRL's packing emit. Raises TypeError if the ids
        are not integers, ValueError if the first is not 0 or one does not follow its predecessor (named with its
        index).
        """
        if position_ids.is_floating_point() or position_ids.dtype == torch.bool:
            raise UsageTypeError(f"position_ids must be integers, got {position_ids.dtype}")
        if position_ids.ndim == 2 and position_ids.shape[0] == 1:
            position_ids = position_ids[0]
        if position_ids.ndim != 1 or position_ids.numel() == 0:
            raise UsageError(
                f"position_ids must have shape (T,) or (1, T) with T >= 1, got {tuple(position_ids.shape)}"
            )
        host = position_ids.detach().cpu().long()
        starts = host == 0
        if not bool(starts[0]):
            raise UsageError(f"position_ids must start at 0, got {int(host[0])}")
        broken = ~starts[1:] & (host[1:] != host[:-1] + 1)
        if bool(broken.any()):
            i = int(broken.int().argmax()) + 1
            raise UsageError(
                f"position_ids must count up by one or restart at 0, "
                f"but position {int(host[i])} at index {i} follows {int(host[i - 1])}"
            )
        ends = torch.tensor([host.numel()], dtype=torch.int64)
        return cls._build(torch.cat([starts.nonzero().squeeze(1), ends]).int()).to(position_ids.device)

    @classmethod
    def _build(cls, cu_seqlens: Tensor) -> Packing:
        schedule = build_schedule(cu_seqlens)
        return cls(schedule, host_cu_seqlens=schedule.cu_seqlens, max_seqlen=int(cu_seqlens.diff().max()))

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 (S+1,): where documents begin; starts at 0, ends at T, strictly increasing; on the packing's device."""
        return self.schedule.cu_seqlens

    @property
    def num_tokens(self) -> int:
        """T, tokens of the pack."""
        return self.schedule.num_tokens

    @property
    def num_seqs(self) -> int:
        """S, documents of the pack."""
        return self.schedule.num_seqs

    @property
    def device(self) -> torch.device:
        return self.schedule.device

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
            raise UsageError(f"x has shape {tuple(x.shape)}, but the packing has T = {self.num_tokens} tokens")
        return list(x.split(self.host_lengths))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Packing:
        """The same packing on `device`, by one copy; itself if it is there already."""
        schedule = self.schedule.to(device, non_blocking=non_blocking)
        return self if schedule is self.schedule else replace(self, schedule=schedule)

    def pin_memory(self) -> Packing:
        """The same packing in page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, schedule=self.schedule.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        # On the CPU the schedule alone is all there is, a NumPy array once pickled: see there.
        host = None if self.device.type == "cpu" else self.host_cu_seqlens
        return _restore_packing, (self.schedule, host, self.max_seqlen)

    def __repr__(self) -> str:
        return f"Packing({self.num_seqs} documents, {self.num_tokens} tokens, longest {self.max_seqlen}, {self.device})"


def _restore_packing(schedule: Schedule, host_cu_seqlens: Tensor | None, max_seqlen: int) -> Packing:
    return Packing(schedule, schedule.cu_seqlens if host_cu_seqlens is None else host_cu_seqlens, max_seqlen)


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
    num_targets: int = -1
    """Labels that are not -100; counted where it is not given."""
    num_padding: int = 0
    """Tokens that belong to no document: a row's filler, or the tail up to a fixed T."""
    step_targets: int | None = None
    """Valid targets of the whole optimiser step, over all ranks and micro-batches; None: those of this batch alone."""
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
        return cls(input_ids, labels, packing)

    def __post_init__(self) -> None:
        if not isinstance(self.packing, Packing):
            raise UsageTypeError(f"packing must be a Packing, got {type(self.packing).__name__}")
        for name in ("input_ids", "labels"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise UsageTypeError(f"{name} must be a tensor, got {type(value).__name__}")
            if value.dtype != torch.int64:
                raise UsageTypeError(f"{name} must be int64, got {value.dtype}")
            if value.shape != (self.packing.num_tokens,):
                raise UsageError(
                    f"{name} has shape {tuple(value.shape)}, but the packing has T = {self.packing.num_tokens} tokens"
                )
        if self.num_targets < 0:
            object.__setattr__(self, "num_targets", int((self.labels != self.IGNORE_INDEX).sum()))

    @property
    def num_tokens(self) -> int:
        """Real tokens of the batch, padding excluded."""
        return self.packing.num_tokens - self.num_padding

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch on `device`, by one copy; `doc_ids` and `real_lengths` stay on the CPU."""
        if len({self.input_ids.device, self.labels.device, self.packing.device}) > 1:
            input_ids, labels = (x.to(device, non_blocking=non_blocking) for x in (self.input_ids, self.labels))
            packing = self.packing.to(device, non_blocking=non_blocking)
            return replace(self, input_ids=input_ids, labels=labels, packing=packing)
        if self.input_ids.device == torch.device(device):
            return self
        flat = self._flat()
        moved = flat.to(device, non_blocking=non_blocking)
        return self if moved is flat else self._held_in(moved)

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory, in one piece."""
        return self._held_in(self._flat().pin_memory())

    def _flat(self) -> Tensor:
        """int32 (4 T + schedule,): input_ids, labels and the schedule's buffer, one after the other. The schedule's
        tables lie at multiples of 16 bytes in it too."""
        parts = (self.input_ids, self.labels, self.packing.schedule.buffer)
        size = self.input_ids.shape[0]
        begins = [x.storage_offset() * x.element_size() for x in parts]
        storages = {x.untyped_storage().data_ptr() for x in parts}
        if len(storages) == 1 and 0 not in storages and begins == [0, 8 * size, 16 * size]:
            buffer = parts[-1]  # of a batch that was moved or pinned before
            return buffer.as_strided((4 * size + buffer.shape[0],), (1,), 0)
        return torch.cat([x.contiguous().view(torch.int32) for x in parts])

    def _held_in(self, flat: Tensor) -> PackedBatch:
        """The same batch as views of a copy of `_flat`."""
        size = 2 * self.input_ids.shape[0]
        packing = replace(self.packing, schedule=self.packing.schedule.held_in(flat[2 * size :]))
        input_ids, labels = flat[:size].view(torch.int64), flat[size : 2 * size].view(torch.int64)
        return replace(self, input_ids=input_ids, labels=labels, packing=packing)

    def __getstate__(self) -> dict[str, Any]:
        # As NumPy arrays: a loader worker would send every tensor by a file descriptor of its own, in milliseconds.
        return {
            name: value.numpy() if isinstance(value, Tensor) and value.device.type == "cpu" else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self.__dict__[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    def __repr__(self) -> str:
        return f"PackedBatch({self.packing!r}, {self.num_targets} targets, {self.num_padding} padding)"
