"""Output that any terminal can show: characters that its encoding lacks are spelled in ASCII."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

_SPELLED = {
    **dict.fromkeys("─━┄╌╴╶╸╺–—−", "-"),
    **dict.fromkeys("│┃╷╵", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇╈┳┻", "+"),
    **dict.fromkeys("•·∙", "*"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    "…": "...",
    "×": "x",
    "÷": "/",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "√": "sqrt",
    "Σ": "sum",
    "σ": "sigma",
    "Δ": "delta",
    "µ": "u",
    "\N{REPLACEMENT CHARACTER}": "?",
}


def spelled(text: str) -> str:
    """In ASCII: by the table, else without accents, else a question mark.

    >>> spelled("8/3 · d − 1 ≤ café 中")
    '8/3 * d - 1 <= cafe ?'
    """
    return "".join(c if c.isascii() else _SPELLED.get(c) or _without_accents(c) or "?" for c in text)


def _without_accents(character: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii())


def _handler(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return spelled(error.object[error.start : error.end]), error.end


def never_fail() -> None:
    """Has stdout and stderr spell what their encoding lacks, instead of failing."""
    codecs.register_error("packmamba.spelled", _handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().replace("-", "").startswith("utf"):
            stream.reconfigure(errors="packmamba.spelled")
