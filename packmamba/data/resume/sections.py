"""Streams cut into sections: a bounded buffer of documents that a resumed run fills again, exactly.

A section is so many consecutive documents of a stream, tokenised and packed in a folder of the cache. One process of a
node writes the sections, in a background thread and one ahead of training; the others wait for the folder to appear.
Every rank and every loader worker that opens a section finds the same packs.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
import uuid
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from packmamba.atomic import new_folder
from packmamba.data.documents import Documents, require_conversations, rows_to_train_on
from packmamba.data.options import DataOptions
from packmamba.data.pack_documents import pack_section
from packmamba.data.packers import Packs
from packmamba.data.text.corpus import Corpus, tokenise
from packmamba.data.text.encode import RowError
from packmamba.data.text.show import about_conversations
from packmamba.errors import UsageError


@dataclass(frozen=True)
class Section:
    """Documents of a stream that were packed together."""

    folder: Path
    first_row: int
    """The row of its first document in the stream."""
    is_last: bool
    """Whether the stream ends with it."""
    num_packs: int
    digests: dict[str, str | None]
    """See `Corpus.digests`; the hashes are None where no document has a token."""

    @classmethod
    def read(cls, folder: Path) -> Section:
        """A section that has been written."""
        return cls(folder, **json.loads((folder / "section.json").read_text()))

    @cached_property
    def _contents(self) -> tuple[Documents, Packs]:
        return pickle.loads((self.folder / "packs.pickle").read_bytes())

    @property
    def documents(self) -> Documents:
        """Its documents that are not empty. Raises MissingFileError where `num_packs` is 0."""
        return self._contents[0]

    @property
    def packs(self) -> Packs:
        """Their packs. Raises MissingFileError where `num_packs` is 0."""
        return self._contents[1]


class Sections:
    """The sections of a stream, in the order of training. Loader workers get a copy that only opens sections."""

    def __init__(self, folder: Path, size: int, writer: SectionWriter | None) -> None:
        """folder: where sections appear. size: documents of a section; the last one has fewer. writer: None in
        processes that wait for another one to write the sections."""
        self.folder = folder
        self.size = size
        self._writer = writer
        self._latest: tuple[tuple[int, int], Section] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "size": self.size, "_writer": None, "_latest": None}

    def open(self, epoch: int, index: int) -> Section:
        """A section that has been written; the latest is kept."""
        if self._latest is None or self._latest[0] != (epoch, index):
            self._latest = (epoch, index), Section.read(section_folder(self.folder, epoch, index))
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
        """Deletes a section that no rank and no worker needs any more. It may be written again."""
        if self._writer is not None:
            self._writer.delete(epoch, index)


class SectionWriter:
    """Reads the training source as a stream, and writes its sections. The shards come in a random order where `shuffle`
    says so, another one each epoch.

    It holds a lock as long as it lives, by which other processes know that it does.
    """

    def __init__(self, folder: Path, size: int, options: DataOptions) -> None:
        """folder: where to write. size: documents of a section."""
        self.folder = folder
        self.size = size
        self._options = options
        self._warned = self._described = False
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
        first_row = index * self.size
        target = section_folder(self.folder, epoch, index)
        with new_folder(target) as temporary:
            description = {"first_row": first_row, "is_last": rows < self.size, "num_packs": 0}
            description["digests"] = {"documents": None, "chat_template": None}
            documents = self._tokenise(tables, first_row, temporary)
            if documents is not None and documents.rows.size:
                packs = pack_section(self._options, documents, epoch, index)
                corpus = Corpus(target / documents.corpus.folder.relative_to(temporary))
                (temporary / "packs.pickle").write_bytes(pickle.dumps((Documents(corpus, documents.rows), packs)))
                description |= {"num_packs": len(packs), "digests": documents.corpus.digests}
            (temporary / "section.json").write_text(json.dumps(description))

    def _tokenise(self, tables: list[pa.Table], first_row: int, folder: Path) -> Documents | None:
        """The documents of a section; None where no row has a text."""
        if not any(value.as_py() for table in tables for column in table.columns for value in column):
            empty = np.zeros(sum(map(len, tables)), dtype=np.int64)
            self._rows_to_train_on(empty, empty.astype(bool), first_row)
            return None
        dataset = Dataset(pa.concat_tables(tables, promote_options="permissive"))
        sources, options = self._options.sources, self._options.documents
        require_conversations(dataset, sources.train, options.train_on)
        try:
            corpus = tokenise(
                dataset, options.tokenizer, folder, chat_template=sources.chat_template, train_on=options.train_on
            )
        except RowError as error:
            raise UsageError(f"{sources.train}, counted from row {first_row}: {error}") from error
        if not self._described and (said := about_conversations(dataset, corpus, options.tokenizer)):
            rank_zero_info(f"{sources.train}, counted from row {first_row}: {said}")
            self._described = True
        return Documents(corpus, self._rows_to_train_on(corpus.lengths, corpus.silent, first_row))

    def _rows_to_train_on(self, lengths: np.ndarray, silent: np.ndarray, first_row: int) -> np.ndarray:
        policy = self._options.handling.empty_documents
        source = self._options.sources.train
        return rows_to_train_on(lengths, silent, source, policy, warn=self._warn_once, first_row=first_row)

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            rank_zero_warn(message)
        self._warned = True

    def _sections(self, epoch: int, index: int) -> Iterator[list[pa.Table]]:
        """The tables of each section from one on; the last one is smaller than the others, and may be empty."""
        order, most = self._options.order, self._options.documents.max_documents
        stream = self._options.sources.train.stream()
        shards = np.arange(stream.num_shards)
        if order.shuffle and most is None:  # of a part of the stream, the shards keep their order
            shards = np.random.default_rng((order.seed, epoch)).permutation(stream.num_shards)
        left = None if most is None else most - index * self.size
        tables, rows = [], 0
        for table in stream.tables(shards.tolist(), skip=index * self.size):
            if left is not None:
                table = table.slice(0, max(0, left))
                left -= len(table)
            while rows + len(table) >= self.size:
                yield [*tables, table.slice(0, self.size - rows)]
                table = table.slice(self.size - rows)
                tables, rows = [], 0
            if len(table):
                tables.append(table)
                rows += len(table)
            if left == 0:
                break
        yield tables


def section_folder(folder: Path, epoch: int, index: int) -> Path:
    return folder / f"epoch-{epoch}-section-{index}"


def open_sections(trainer: Any, options: DataOptions) -> Sections:
    """The sections of a run, written by one process of each node. Runs do not share sections: each deletes those that
    it has trained on. trainer: None where there is no Trainer."""
    folder, size = options.handling.cache_dir / "sections" / uuid.uuid4().hex, options.documents.section_documents
    assert size is not None
    if trainer is None:
        return Sections(folder, size, SectionWriter(folder, size, options))
    folder = trainer.strategy.broadcast(folder)
    folder = folder.with_name(f"{folder.name}-{trainer.node_rank}")
    sections = Sections(folder, size, SectionWriter(folder, size, options) if trainer.local_rank == 0 else None)
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
    """Deletes all sections and releases the lock, without waiting: the garbage collector may call it in a thread that
    holds any lock. It does not call it while a section is being written, because that refers to the writer."""
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
