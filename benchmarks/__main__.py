"""`python -m benchmarks NAME`: runs one of the project's benchmarks.

Those of the operators and the model need torch, triton and numpy only.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

BENCHMARKS = {
    "kernels": (
        "benchmarks.operators.kernels",
        "time of the operators, beside their bounds and other packages' operators",
    ),
    "host": ("benchmarks.operators.host", "how long Python is busy with an operator call, forward and backward"),
    "scaling": (
        "benchmarks.operators.scaling",
        "time of the operators for each token, against the tokens of a pack and the lengths of documents",
    ),
    "counters": ("benchmarks.operators.counters", "hardware counters of the kernels, by NVIDIA's ncu"),
    "instructions": (
        "benchmarks.compiler.instructions",
        "instructions, registers, spills, modelled cycles of the kernels, for GPUs that need not be here",
    ),
    "accuracy": (
        "benchmarks.operators.accuracy",
        "errors of the operators and their gradients against fp64, by dtype, step size and length of documents",
    ),
    "packers": (
        "benchmarks.data.packers",
        "how full each packing strategy makes its packs, beside PackMamba's padding; its time and memory",
    ),
    "loader": ("benchmarks.data.loader", "tokens a second and memory of the data loader, with and without workers"),
    "tokenise": ("benchmarks.data.tokenise", "tokens a second of tokenisation, by tokenizer and number of processes"),
    "loss_memory": ("benchmarks.operators.loss_memory", "peak memory and time of the loss, in chunks and whole"),
    "gpu": ("benchmarks.gpu", "all of those that need a GPU, one after the other, for the READMEs' tables"),
}
"""Every benchmark: the module whose `main(argv)` runs it, and its line in the help."""

HELP = """usage: python -m benchmarks NAME [OPTIONS]

benchmarks:
{benchmarks}

`python -m benchmarks NAME --help` for the options of one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code. Exits with a message for a benchmark that does not exist, naming those that do."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<14} {line}" for name, (_, line) in BENCHMARKS.items()]
        print(HELP.format(benchmarks="\n".join(lines)), end="")
        return 0
    name, *options = arguments
    if name not in BENCHMARKS:
        raise SystemExit(f"unknown benchmark {name!r}; available: {', '.join(BENCHMARKS)}")
    return importlib.import_module(BENCHMARKS[name][0]).main(options) or 0


if __name__ == "__main__":
    sys.exit(main())
