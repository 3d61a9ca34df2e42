"""Encoding in several processes, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

from datasets import Dataset

from packmamba.data.text.encode import EncodedRows, Encoder, RowError

BATCH = 1000
"""Documents that are encoded at once."""
WORTH_IT = 10_000
"""Documents from which on `num_workers` takes other processes."""


def num_workers(dataset: Dataset, encoder: Encoder) -> int:
    """Processes that encode a dataset fastest, 0 for this one alone.

    Tokenizers in Rust have threads of their own, and bytes take less time than it takes to hand them over. It is chat
    templates, and tokenizers written in Python, that keep a process busy.
    """
    if len(dataset) < WORTH_IT or not (encoder.template is not None or encoder.tokenizer.is_slow):
        return 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cpus == 1 else cpus


def encode_all(dataset: Dataset, encoder: Encoder, workers: int) -> Generator[EncodedRows, None, None]:
    """The dataset, encoded a batch at a time; the same whatever the number of workers. 0: by this process."""
    starts = range(0, len(dataset), BATCH)
    if workers == 0:
        for start in starts:
            yield _encode_batch(dataset, encoder, start)
        return
    # Forked, because other ways of starting a process run the caller's script again.
    context = multiprocessing.get_context("fork")
    with (
        _no_rust_threads(),
        ProcessPoolExecutor(min(workers, len(starts)), context, _begin_worker, (dataset, encoder, os.getpid())) as pool,
    ):
        pending: deque[Future[EncodedRows]] = deque()
        try:
            for start in starts:
                pending.append(pool.submit(_encode_in_worker, start))
                if len(pending) > 2 * workers:  # few batches wait to be written
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encode_batch(dataset: Dataset, encoder: Encoder, start: int) -> EncodedRows:
    try:
        rows = dataset[start : start + BATCH]
    except UnicodeDecodeError as error:  # files that are not UTF-8 load all the same
        raise undecodable(dataset, start) from error
    return encoder.encode(rows, start)


def undecodable(dataset: Dataset, start: int) -> RowError:
    """Says which is the first row, from `start` on, that is not UTF-8; there has to be one."""
    for row in range(start, len(dataset)):
        try:
            _ = dataset[row]
        except UnicodeDecodeError as error:
            return RowError(f"row {row}: not UTF-8: {error.reason} at byte {error.start + 1} of a text")
    raise AssertionError("every row can be decoded")


_job: tuple[Dataset, Encoder]
"""The dataset and the encoder of a worker process."""


def _begin_worker(dataset: Dataset, encoder: Encoder, parent: int) -> None:
    global _job
    _job = dataset, encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends the workers
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    """Ends this process soon after its parent, which may be killed without a chance to say so."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _encode_in_worker(start: int) -> EncodedRows:
    return _encode_batch(*_job, start)


@contextmanager
def _no_rust_threads() -> Iterator[None]:
    """Tokenizers' threads do not survive a fork; without this, each worker would say so on the terminal."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
