"""Small local data, one cache a test session, and quiet libraries."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import datasets


@pytest.fixture(autouse=True, scope="session")
def no_progress_bars():
    if importlib.util.find_spec("datasets") is not None:
        import datasets

        datasets.disable_progress_bars()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def write_jsonl(tmp_path: Path):
    """A function that writes rows to a file and returns its path."""

    def write(rows: list[dict] | list[str], name: str = "documents.jsonl") -> str:
        path = tmp_path / name
        lines = (json.dumps(row if isinstance(row, dict) else {"text": row}) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    return write


@pytest.fixture
def sixty_documents(write_jsonl) -> str:
    """A file of 60 different documents of 1 to 60 characters."""
    rng = random.Random(0)
    return write_jsonl(["".join(rng.choices("abcdefgh", k=rng.randint(1, 60))) for _ in range(60)])


@pytest.fixture(scope="session")
def python_docs(tmp_path_factory: pytest.TempPathFactory) -> tuple[datasets.Dataset, Path]:
    """The offline default corpus and the cache it was built in."""
    from packmamba.data.sources import PythonDocs

    cache = tmp_path_factory.mktemp("python-docs")
    return PythonDocs().load(cache), cache


@pytest.fixture(scope="session")
def bpe_folder(python_docs: tuple[datasets.Dataset, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a BPE tokenizer of 1,000 tokens, trained on a part of the offline default corpus."""
    from packmamba.data.text.bpe import train_bpe

    folder = tmp_path_factory.mktemp("bpe") / "tokenizer"
    train_bpe(python_docs[0].select(range(500)), 1000, folder)
    return str(folder)
