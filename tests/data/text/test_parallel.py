"""Several processes tokenise as one does, fail as one does, and leave as little behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from datasets import Dataset

from packmamba.data.text import parallel
from packmamba.data.text.chat import CHATML, ChatTemplate
from packmamba.data.text.corpus import tokenise
from packmamba.data.text.encode import Encoder, RowError
from packmamba.data.text.tokenizers import BPETokenizer, ByteTokenizer

TEXTS = [f"document {index} " * (index % 13) for index in range(200)]
DATASETS = {
    "text": Dataset.from_dict({"text": TEXTS}),
    "conversations": Dataset.from_dict({"prompt": TEXTS, "completion": TEXTS[::-1]}),
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(parallel, "BATCH", 7)


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_files_are_the_same_for_any_number_of_processes(tmp_path, bpe_folder, dataset, kind):
    tokenizer = ByteTokenizer() if kind == "bytes" else BPETokenizer(path=bpe_folder)
    folders = [tokenise(dataset, tokenizer, tmp_path / str(n), workers=n).folder for n in (0, 1, 3)]
    serial, *others = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert len(serial) == 4 + ("prompt" in dataset.column_names)
    for other in others:
        assert other == serial


def test_tokenizers_threads_are_as_before(tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    tokenise(DATASETS["text"], ByteTokenizer(), tmp_path, workers=2)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_a_row_that_cannot_be_written_out_is_named_by_a_worker_too(tmp_path):
    rows = [[{"role": "user", "content": text}] for text in TEXTS]
    rows[150][0]["role"] = None
    with pytest.raises(RowError, match="row 150: message 1 has no role"):
        tokenise(Dataset.from_dict({"messages": rows}), ByteTokenizer(), tmp_path, workers=2)
    assert list((tmp_path / "tokens").iterdir()) == []


class Deadly(ByteTokenizer):
    def encode_texts(self, texts):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_an_error_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        tokenise(DATASETS["text"], Deadly(), tmp_path, workers=2)
    assert list((tmp_path / "tokens").iterdir()) == []


WORKING = """
import sys, time
from pathlib import Path
from datasets import Dataset
from packmamba.data.text import parallel
from packmamba.data.text.corpus import tokenise
from packmamba.data.text.tokenizers import ByteTokenizer

class Slow(ByteTokenizer):
    def encode_texts(self, texts):
        (Path(sys.argv[1]) / str(__import__("os").getpid())).touch()
        time.sleep(0.05)
        return super().encode_texts(texts)

parallel.BATCH = 1
(Path(sys.argv[1]) / "workers").mkdir(parents=True)
tokenise(Dataset.from_dict({"text": ["a"] * 100_000}), Slow(), Path(sys.argv[1]) / "cache", workers=2)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_they_work_for(tmp_path, how):
    process = subprocess.Popen([sys.executable, "-c", WORKING, str(tmp_path)], stderr=subprocess.DEVNULL)
    workers: list[int] = []
    deadline = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()]
        time.sleep(0.1)
    assert len(workers) == 2
    process.send_signal(how)
    process.wait(60)
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    if how == signal.SIGINT:
        assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_processes_are_taken_where_they_help(bpe_folder, monkeypatch):
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda process: set(range(5)))
    few, many = Dataset.from_dict({"text": ["a"] * 100}), Dataset.from_dict({"text": ["a"] * parallel.WORTH_IT})
    chat = ChatTemplate(CHATML)

    class Own(ByteTokenizer):
        is_slow = True

    assert parallel.num_workers(few, Encoder(Own())) == 0
    assert parallel.num_workers(many, Encoder(Own())) == 5
    assert parallel.num_workers(many, Encoder(ByteTokenizer())) == 0
    assert parallel.num_workers(many, Encoder(BPETokenizer(path=bpe_folder))) == 0
    assert parallel.num_workers(many, Encoder(ByteTokenizer(), chat)) == 5
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda process: {0})
    assert parallel.num_workers(many, Encoder(ByteTokenizer(), chat)) == 0
