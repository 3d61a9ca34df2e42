"""Files of embeddings, which `threshold_filtering` compares documents by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packmamba.errors import MissingFileError, UsageError


def open_embeddings(file: str) -> np.ndarray:
    """The array of a .npy file, (documents, any), mapped into memory.

    Raises MissingFileError where there is no file; UsageError for one that holds no such array.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise MissingFileError(f"embeddings {file!r}: there is no such file; name an array of numbers, .npy")
    try:
        embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UsageError(f"embeddings {file!r} cannot be read: it has to be an array of numbers, .npy") from error
    if not isinstance(embeddings, np.ndarray) or embeddings.ndim != 2:
        found = embeddings.shape if isinstance(embeddings, np.ndarray) else "several arrays"
        raise UsageError(f"embeddings {file!r} need one row of numbers for each document; found {found}")
    return embeddings
