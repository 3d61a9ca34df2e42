"""The offline default: documentation that comes with CPython."""

from __future__ import annotations

import ast
import logging
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from packmamba.data.cache import key_of, progress_bar
from packmamba.data.sources.base import Source, stored_once
from packmamba.errors import MissingFileError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PythonDocs(Source):
    """Documentation that comes with CPython: the language reference's topics and the standard library's docstrings.

    Works offline, about 8,300 documents and 2.2 MB of prose and code: half are shorter than 100 characters, the longest
    has 62,000. The files are parsed, not imported, and documents that occur twice are kept once, so the same Python
    installation always gives the same documents in the same order.
    """

    def load(self, cache_dir: Path) -> Dataset:
        library = Path(sysconfig.get_path("stdlib"))
        files = sorted(
            path for path in library.rglob("*.py") if not _NOT_LIBRARY & set(path.parts[len(library.parts) :])
        )
        if not files:
            raise MissingFileError(f"no .py file in {library}: this Python has no source of its standard library")
        stamps = [(str(path.relative_to(library)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        folder = cache_dir / "python-docs" / key_of(sys.version, stamps)
        return stored_once(folder, lambda: _python_documents(files))


_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def _python_documents(files: list[Path]) -> list[str]:
    from pydoc_data.topics import topics

    documents = dict.fromkeys(topics[name].strip() for name in sorted(topics))
    with progress_bar() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own files hold escapes that newer Pythons warn about
        for path in progress.track(files, description="Collecting Python's documentation"):
            documents.update(dict.fromkeys(text.strip() for text in _docstrings(ast.parse(path.read_bytes()))))
    documents.pop("", None)
    _log.info("collected %d documents of Python %s", len(documents), sys.version.split()[0])
    return list(documents)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module and everything defined in it, in the order of the file."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _docstrings(child)
