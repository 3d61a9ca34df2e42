"""The batches of a streamed source: section after section, each planned like an epoch of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from packmamba.data.documents import Documents
from packmamba.data.loader import PlannedDataset
from packmamba.data.options import DataOptions
from packmamba.data.packers import Packs
from packmamba.data.plan import PlanOptions, micro_steps_left, packs_after
from packmamba.data.position import Key, Position
from packmamba.data.resume.fingerprint import SavedData, require_same
from packmamba.data.resume.sections import Section, Sections
from packmamba.errors import UsageError


class StreamedDataset(PlannedDataset):
    """The batches of one rank, of documents that are read while training goes on.

    A section's last optimiser step is filled with micro-steps without packs, so that no step needs two sections.
    """

    def __init__(
        self, sections: Sections, options: PlanOptions, *, prefetched: int, saved: SavedData | None, **batch: Any
    ) -> None:
        """options: with `whole_steps`. prefetched: batches that may be on their way on any rank, while training is at
        another one. saved: a checkpoint's description of the section that training goes on with. batch: see
        `PlannedDataset`."""
        super().__init__(options, **batch)
        self.sections = sections
        self._prefetched = prefetched
        self._saved = saved
        self._known: dict[tuple[int, int], tuple[int, dict[str, str | None]]] = {}
        self._issued = 0
        self._finished: dict[tuple[int, int], int] = {}

    @classmethod
    def of_run(
        cls,
        sections: Sections,
        options: DataOptions,
        world_size: int,
        rank: int,
        accumulation: int,
        *,
        saved: SavedData | None,
        **batch: Any,
    ) -> StreamedDataset:
        """By the options of a data module."""
        order = options.order
        return cls(
            sections,
            order.plan(seed=order.shuffle_seed, world_size=world_size, accumulation=accumulation, whole_steps=True),
            rank=rank,
            # The batches that each worker was asked for ahead, those that Lightning holds, and another rank's lag.
            prefetched=2 * options.handling.num_workers + 2 + accumulation,
            saved=saved,
            **batch,
        )

    def section(self, position: Position) -> tuple[Documents, Packs, int]:
        section = self.sections.open(position.epoch, position.section)
        return section.documents, section.packs, section.first_row

    def length(self) -> None:
        return None

    def keys(self, position: Position) -> Iterator[Key]:
        """The keys that are left of the epoch of a position.

        Raises UsageError if the stream has no document with a token, or if a section is not the one of the checkpoint.
        """
        begun = position
        while True:
            number = position[:2]
            section = self.sections.wait_for(*number)
            self._check(position, section)
            self._known[number] = section.num_packs, section.digests
            self._finished.pop(number, None)
            self._delete_finished()
            for micro_step in range(micro_steps_left(section.num_packs, position.packs, self.options)):
                self._issued += 1
                yield Key(position, micro_step)
            self._finished[number] = self._issued
            if section.is_last:
                break
            position = Position(position.epoch, position.section + 1)
        if begun == Position(begun.epoch) and not any(
            packs for (epoch, _), (packs, _) in self._known.items() if epoch == begun.epoch
        ):
            raise UsageError("the streamed source has no document with a token; there has to be at least one")

    def _check(self, position: Position, section: Section) -> None:
        """Warns of sections that are too small, once an epoch; compares a section with the checkpoint's."""
        step = self.options.world_size * self.options.accumulation
        if position.section == 0 and not section.is_last and section.num_packs < step:
            rank_zero_warn(
                f"a section of {self.sections.size} documents has {section.num_packs} packs, fewer than the {step} of "
                "an optimiser step; raise section_documents"
            )
        if self._saved is not None and self._saved.position[:2] == position[:2]:
            where = f" from row {section.first_row:,} of the stream on"
            then, now = (
                {f"{name}{where}": digest for name, digest in digests.items()}
                for digests in (self._saved.digests, section.digests)
            )
            if then:
                require_same(then, now)

    def _delete_finished(self) -> None:
        """Deletes the sections that training has left behind: all but the latest, once none of their batches can be on
        its way."""
        for number, issued in list(self._finished.items())[:-1]:
            if issued + self._prefetched < self._issued:
                self.sections.delete(*number)
                del self._finished[number]

    def after(self, position: Position, micro_steps: int) -> tuple[Position, int]:
        # The end of a section is not yet the beginning of the next: there may be none.
        while micro_steps and micro_steps > (left := self._left(position)):
            micro_steps -= left
            position = Position(position.epoch, position.section + 1)
        if not micro_steps:
            return position, 0
        packs, open_steps = packs_after(self._known[position[:2]][0], position.packs, micro_steps, self.options)
        return position._replace(packs=packs), open_steps

    def _left(self, position: Position) -> int:
        return micro_steps_left(self._known[position[:2]][0], position.packs, self.options)

    def micro_steps_done(self, position: Position, counted: int) -> int:
        return counted // self.options.accumulation * self.options.accumulation

    def describe(self, position: Position) -> str:
        return f"{position.packs} packs of section {position.section} of epoch {position.epoch}"

    def digests(self, position: Position) -> dict[str, str | None]:
        return self._known[position[:2]][1] if position[:2] in self._known else {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_saved": None, "_known": {}, "_finished": {}}
