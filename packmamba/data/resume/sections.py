"""Streams cut into sections: a bounded buffer of documents that a resumed run fills again, exactly.

A section is so many consecutive documents of a stream, tokenised and packed in a folder of the cache. One process of a
node writes the sections, in a background thread and one ahead of training; the others wait for the folder to appear.
Rank 0 or 7, loader worker or not: who opens a section finds the same packs.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_warn

from packmamba.data.cache import new_folder
from packmamba.data.documents import Documents, EmptyDocuments
from packmamba.data.packers import Packs
from packmamba.data.sources import Source
from packmamba.data.text.corpus import Corpus, tokenise
from packmamba.data.text.encode import RowError
from packmamba.data.text.tokenizers import Tokenizer
from packmamba.errors import UsageError


@dataclass(frozen=True)
class Section:
    """Documents of a stream that were packed together."""

    folder: Path

    @cached_property
    def _description(self) -> dict[str, Any]:
        return json.loads((self.folder / "section.json").read_text())

    @property
    def first_row(self) -> int:
        """The row of its first document in the stream."""
        return self._description["first_row"]

    @property
    def digests(self) -> dict[str, str | None]:
        """See `Corpus.digests`; of None where no document has a token."""
        return self._description["digests"]

    @property
    def is_last(self) -> bool:
        """Whether the stream ends with it."""
        return self._description["is_last"]

    @cached_property
    def _contents(self) -> tuple[Documents, Packs]:
        return pickle.loads((self.folder / "packs.pickle").read_bytes())

    @property
    def documents(self) -> Documents:
        """Its documents that are not empty. Raises FileNotFoundError where `num_packs` is 0."""
        return self._contents[0]

    @property
    def packs(self) -> Packs:
        """Their packs. Raises FileNotFoundError where `num_packs` is 0."""
        return self._contents[1]

    @property
    def num_packs(self) -> int:
        return self._description["num_packs"]


class Sections:
    """The sections of a stream, in the order of training. Loader workers get a copy that only opens what is there."""

    def __init__(self, folder: Path, writer: SectionWriter | None) -> None:
        """folder: where sections appear. writer: what makes them; None in processes that wait for another one to."""
        self.folder = folder
        self._writer = writer
        self._latest: tuple[tuple[int, int], Section] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_writer": None, "_latest": None}

    def open(self, epoch: int, index: int) -> Section:
        """A section that is there; the latest is kept."""
        if self._latest is None or self._latest[0] != (epoch, index):
            self._latest = (epoch, index), Section(section_folder(self.folder, epoch, index))
        return self._latest[1]

    def wait_for(self, epoch: int, index: int) -> Section:
        """A section, once it has been written; and has the next one written meanwhile.

        Raises what reading the stream raises, and RuntimeError if the process that writes sections has ended.
        """
        if self._writer is not None:
            self._writer.start(epoch, index).result()
            section = self.open(epoch, index)
            if not section.is_last:
                self._writer.start(epoch, index + 1)
            return section
        path = section_folder(self.folder, epoch, index)
        looked = time.monotonic()
        while not path.exists():
            time.sleep(0.02)
            if time.monotonic() > looked + 1:
                if not is_alive(self.folder) and not path.exists():
                    raise RuntimeError(f"the process that writes sections to {self.folder} ended before {path.name}")
                looked = time.monotonic()
        return self.open(epoch, index)

    def close(self) -> None:
        """Deletes all sections, and stops writing."""
        if self._writer is not None:
            self._writer.close()

    def delete(self, epoch: int, index: int) -> None:
        """Says that nobody needs a section any more. It may be written again."""
        if self._writer is not None:
            self._writer.delete(epoch, index)


class SectionWriter:
    """Reads a stream, and writes its sections. Holds a lock as long as it lives, by which others know that it does."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        tokenizer: Tokenizer,
        pack: Callable[[Documents, tuple[int, int]], Packs],
        *,
        size: int,
        seed: int | None,
        max_documents: int | None,
        empty_documents: EmptyDocuments,
        chat_template: str | None,
    ) -> None:
        """pack: documents and the numbers of epoch and section to packs. size: documents of a section. seed: takes the
        shards in a random order, another one each epoch, unless there is only a part of them; None keeps the order.
        """
        self.folder = folder
        self._source = source
        self._tokenizer = tokenizer
        self._pack = pack
        self._size = size
        self._seed = seed
        self._max_documents = max_documents
        self._empty_documents = empty_documents
        self._chat_template = chat_template
        self._warned = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sections")
        self._started: dict[tuple[int, int], Future[None]] = {}
        self._reader: tuple[tuple[int, int], Iterator[list[pa.Table]]] | None = None
        _delete_dead(folder.parent)
        self._lock = _locked(folder)
        self._clean_up = weakref.finalize(self, _clean_up, os.getpid(), folder, self._lock, self._executor)

    def close(self) -> None:
        """Deletes all sections, and stops writing."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._clean_up()

    def start(self, epoch: int, index: int) -> Future[None]:
        """Has a section written in the background, after those that were asked for before; at once if it is there."""
        if (epoch, index) not in self._started:
            self._started[epoch, index] = self._executor.submit(self._write, epoch, index)
        return self._started[epoch, index]

    def delete(self, epoch: int, index: int) -> None:
        if self._started.pop((epoch, index), None) is not None:
            shutil.rmtree(section_folder(self.folder, epoch, index))

    def _write(self, epoch: int, index: int) -> None:
        if self._reader is None or self._reader[0] != (epoch, index):
            self._reader = (epoch, index), self._sections(epoch, index)
        tables = next(self._reader[1])
        self._reader = (epoch, index + 1), self._reader[1]
        rows = sum(map(len, tables))
        first_row = index * self._size
        with new_folder(section_folder(self.folder, epoch, index)) as temporary:
            description = {"first_row": first_row, "is_last": rows < self._size, "num_packs": 0}
            description["digests"] = {"documents": None, "chat_template": None}
            if any(value.as_py() for table in tables for column in table.columns for value in column):
                dataset = Dataset(pa.concat_tables(tables, promote_options="permissive"))
                try:
                    corpus = tokenise(dataset, self._tokenizer, temporary, chat_template=self._chat_template)
                except RowError as error:
                    raise UsageError(f"{self._source}, counted from row {first_row}: {error}") from error
                documents = Documents(corpus, self._not_empty(corpus, first_row))
                if documents.rows.size:
                    packs = self._pack(documents, (epoch, index))
                    final = section_folder(self.folder, epoch, index) / corpus.folder.relative_to(temporary)
                    contents = Documents(Corpus(final), documents.rows), packs
                    (temporary / "packs.pickle").write_bytes(pickle.dumps(contents))
                    description |= {"num_packs": len(packs), "digests": corpus.digests}
            (temporary / "section.json").write_text(json.dumps(description))

    def _sections(self, epoch: int, index: int) -> Iterator[list[pa.Table]]:
        """The tables of each section from one on; the last one is smaller than the others, and may be empty."""
        stream = self._source.stream()
        shards = np.arange(stream.num_shards)
        if self._seed is not None and self._max_documents is None:
            shards = np.random.default_rng((self._seed, epoch)).permutation(stream.num_shards)
        left = None if self._max_documents is None else self._max_documents - index * self._size
        tables, rows = [], 0
        for table in stream.tables(shards.tolist(), skip=index * self._size):
            if left is not None:
                table = table.slice(0, max(0, left))
                left -= len(table)
            while rows + len(table) >= self._size:
                yield [*tables, table.slice(0, self._size - rows)]
                table = table.slice(self._size - rows)
                tables, rows = [], 0
            if len(table):
                tables.append(table)
                rows += len(table)
            if left == 0:
                break
        yield tables

    def _not_empty(self, corpus: Corpus, first_row: int) -> np.ndarray:
        left_out = (corpus.lengths == 0) | corpus.silent
        if left_out.any():
            first = int(np.argmax(left_out))
            why = "has nothing that the assistant says" if corpus.silent[first] else "is empty after tokenisation"
            message = f"row {first_row + first} of {self._source} {why}"
            if self._empty_documents == "error":
                raise UsageError(f"{message}; drop such rows, or set empty_documents='skip'")
            if not self._warned:
                rank_zero_warn(f"{message}, and maybe others; they are skipped")
            self._warned = True
        return np.flatnonzero(~left_out)


def section_folder(folder: Path, epoch: int, index: int) -> Path:
    return folder / f"epoch-{epoch}-section-{index}"


def open_sections(trainer: Any, cache_dir: Path, writer: Callable[[Path], SectionWriter]) -> Sections:
    """The sections of a run, written by one process of each node. Runs do not share sections: each deletes what it has
    trained on. trainer: None where there is no Trainer. writer: makes the writer to a folder."""
    folder = cache_dir / "sections" / uuid.uuid4().hex
    if trainer is None:
        return Sections(folder, writer(folder))
    folder = trainer.strategy.broadcast(folder)
    folder = folder.with_name(f"{folder.name}-{trainer.node_rank}")
    sections = Sections(folder, writer(folder) if trainer.local_rank == 0 else None)
    trainer.strategy.barrier("sections")  # after it, a folder without a lock is one whose writer has ended
    return sections


def is_alive(folder: Path) -> bool:
    """Whether a writer holds the lock of a folder."""
    lock = _lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _lock_of(folder: Path) -> FileLock:
    return FileLock(folder.parent / f"{folder.name}.lock", thread_local=False, is_singleton=False)


def _locked(folder: Path) -> FileLock:
    lock = _lock_of(folder)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if Path(lock.lock_file).exists():
            return lock
        lock.release()  # another process has just taken this folder for one that a killed run has left


def _clean_up(pid: int, folder: Path, lock: FileLock, executor: ThreadPoolExecutor) -> None:
    """Waits for nothing: where the garbage collector calls it, the thread at hand may hold any lock. It does not, while
    a section is being written or is to be, because that refers to the writer."""
    if os.getpid() != pid:
        return  # a loader worker, which was forked
    executor.shutdown(wait=False, cancel_futures=True)
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _delete_dead(parent: Path) -> None:
    """Deletes the folders of runs that were killed: the system has released their locks."""
    for path in parent.glob("*.lock"):
        folder = path.with_suffix("")
        lock = _lock_of(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        path.unlink(missing_ok=True)
        lock.release()
