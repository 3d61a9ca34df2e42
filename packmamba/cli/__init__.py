"""The command line: `packmamba COMMAND`; `COMMANDS` lists them.

Only this file is imported for `packmamba --help`; a command's own module, and torch with it, is imported when it runs.
"""

from __future__ import annotations

import difflib
import dis
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import TracebackType

COMMANDS = {
    "quickstart": (
        "packmamba.cli.quickstart",
        "train, validate and compare a small hybrid on the CPU in a few minutes",
    ),
    "fit": ("packmamba.cli.fit", "train a model"),
    "validate": ("packmamba.cli.fit", "perplexity, over tokens and document by document, of the validation set"),
    "test": ("packmamba.cli.fit", "the same for the test set"),
    "predict": ("packmamba.cli.fit", "each document's loss and perplexity, written to a JSONL file"),
    "compare": ("packmamba.cli.compare", "packed, padded and one document at a time, timed on the same documents"),
    "pack": (
        "packmamba.cli.pack",
        "how long a data set's documents are, and what each packing strategy makes of them",
    ),
    "tokenizer": ("packmamba.cli.tokenizer", "train a BPE tokenizer on your documents: `packmamba tokenizer train`"),
    "info": ("packmamba.cli.info", "versions, and what each operator and attention backend would run here"),
}
"""Every command: the module whose `main(argv)` runs it, and its line in `packmamba --help`."""

HELP = """usage: packmamba COMMAND [OPTIONS]

Trains Mamba and hybrid Mamba/attention language models on packed documents.

commands:
{commands}

options:
  -h, --help            this text; `packmamba COMMAND --help` for a command's options
  --version             print the version
  --traceback           show the whole traceback of an error in the input (also: PACKMAMBA_TRACEBACK=1)

example:
  packmamba fit --config configs/quickstart.yaml --trainer.max_steps 50
"""

INPUT_ERRORS = (ValueError, TypeError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 the input was wrong; argv defaults to `sys.argv[1:]`.

    An error in the input is printed as `packmamba: error: …`. It is told from a bug by `is_input_error`; a bug, or
    anything another library raises, keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = os.environ.get("PACKMAMBA_TRACEBACK", "") not in ("", "0")
    if "--traceback" in arguments:
        arguments.remove("--traceback")
        show_traceback = True
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<21} {line}" for name, (_, line) in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    if arguments[0] == "--version":
        print(f"packmamba {version('packmamba')}")
        return 0
    if arguments[0] not in COMMANDS:
        return _fail(_unknown_command(arguments[0]))
    try:
        return _run(arguments)
    except INPUT_ERRORS as error:
        if show_traceback or not is_input_error(error):
            raise
        return _fail(f"{error}\n(--traceback shows where this was found)")


def is_input_error(error: BaseException) -> bool:
    """Whether packmamba itself raised the error on purpose: the last thing on its traceback is a `raise` statement in
    a `packmamba.*` module (not in `packmamba_kernels`, whose callers are packmamba's own layers)."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not str(last.tb_frame.f_globals.get("__name__", "")).startswith("packmamba."):
        return False
    return _stopped_at(last) == "RAISE_VARARGS"


def _stopped_at(last: TracebackType) -> str:
    instructions = dis.get_instructions(last.tb_frame.f_code)
    return next(instruction.opname for instruction in instructions if instruction.offset == last.tb_lasti)


def _run(arguments: list[str]) -> int:
    # Before torch is imported: its CPU threads (GNU OpenMP) wait for each other by spinning, by default so long that
    # on a busy machine a training step takes several times as long; on an idle one this changes nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    module = importlib.import_module(COMMANDS[arguments[0]][0])
    takes_name = module.__name__ == "packmamba.cli.fit"
    try:
        code = module.main(arguments if takes_name else arguments[1:])
    except SystemExit as exit_:  # argparse and jsonargparse leave this way, having printed why
        code = exit_.code
    return code if isinstance(code, int) else 0 if code is None else _fail(str(code))


def _unknown_command(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown command {name!r}{hint} Available: {', '.join(COMMANDS)}"


def _fail(message: str) -> int:
    print(f"packmamba: error: {message}", file=sys.stderr)
    return 2
