"""The command line: `packmamba COMMAND`; `COMMANDS` lists them. A file for each command, which parses and prints.

command: the first word after `packmamba`, and the module whose `main(argv)` runs it.
error in the input: a `packmamba.errors.UsageError`, printed as one line; any other is a bug and keeps its traceback.
shipped configuration: a file of `configs/`, which `--config` takes by its name, in any folder.

Only this file is imported for `packmamba --help`; a command's own module, and torch with it, is imported when it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from packmamba import __version__
from packmamba.cli.deferred import import_lightning
from packmamba.cli.terminal import never_fail
from packmamba.errors import UsageError, did_you_mean

COMMANDS = {
    "quickstart": ("quickstart", "train, validate and compare a small hybrid on the CPU, in minutes"),
    "fit": ("fit", "train a model"),
    "validate": ("fit", "perplexity of the validation set, by token and by document"),
    "test": ("fit", "the same for the test set"),
    "predict": ("fit", "each document's loss and perplexity, written to a JSONL file"),
    "compare": ("compare", "packed, padded and one document at a time, timed"),
    "pack": ("pack", "how long documents are, and what each strategy makes of them"),
    "tokenizer": ("tokenizer", "train a BPE tokenizer on documents: `packmamba tokenizer train`"),
    "info": ("info", "versions, what would run here and why, configurations"),
}
"""Every command: the file of this folder whose `main(argv)` runs it, and its line in `packmamba --help`."""

MOVED = {
    "bench": "the benchmarks are not part of the package: run `python -m benchmarks` in a checkout of the repository; "
    "`packmamba compare` compares ways to train",
}
"""Commands of earlier versions, and what to run instead."""

HELP = """usage: packmamba COMMAND [OPTIONS]

Trains Mamba and hybrid Mamba/attention language models on packed documents.

commands:
{commands}

options:
  -h, --help  this text; `packmamba COMMAND --help` for a command's options
  --version   print the version
  --traceback show the whole traceback of an error in the input
              (also: PACKMAMBA_TRACEBACK=1)

examples:
  packmamba fit --config quickstart --check
  packmamba fit --config quickstart --trainer.max_steps 50
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 the input was wrong, 130 Ctrl-C, 143 SIGTERM; argv
    defaults to `sys.argv[1:]`.

    A UsageError is printed as `packmamba: error: …`, unless `--traceback` asks for more. Any other exception is a bug,
    of packmamba or of another library, and is raised.
    """
    never_fail()
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = os.environ.get("PACKMAMBA_TRACEBACK", "") not in ("", "0")
    if "--traceback" in arguments:
        arguments.remove("--traceback")
        show_traceback = True
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<11} {line}" for name, (_, line) in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    if arguments[0] == "--version":
        print(f"packmamba {__version__}")
        return 0
    if arguments[0] in MOVED:
        return _fail(MOVED[arguments[0]])
    if arguments[0] not in COMMANDS:
        return _fail(_unknown_command(arguments[0]))
    try:
        return _run(arguments)
    except UsageError as error:
        if show_traceback:
            raise
        return _fail(f"{error}\n(--traceback shows where this was found)")
    except KeyboardInterrupt:
        if show_traceback:
            raise
        print("packmamba: interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    # Before torch is imported: its CPU threads (GNU OpenMP) wait for each other by spinning, by default so long that
    # on a busy machine a training step takes several times as long; on an idle one this changes nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # they fill files with half-drawn bars
    file, _ = COMMANDS[arguments[0]]
    if file in ("fit", "quickstart"):
        import_lightning()
    module = importlib.import_module(f"packmamba.cli.{file}")
    takes_name = file == "fit"
    try:
        code = module.main(arguments if takes_name else arguments[1:])
    except SystemExit as exit_:  # argparse and jsonargparse leave this way, having printed why
        code = exit_.code
    return code if isinstance(code, int) else 0 if code is None else _fail(str(code))


def _unknown_command(name: str) -> str:
    return f"unknown command {name!r}{did_you_mean(name, COMMANDS)} Available: {', '.join(COMMANDS)}"


def _fail(message: str) -> int:
    print(f"packmamba: error: {message}", file=sys.stderr)
    return 2
