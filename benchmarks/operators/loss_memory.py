"""Peak memory and time of the loss: linear + cross-entropy in chunks against logits held whole.

    python -m benchmarks.operators.loss_memory --tokens 16384 --vocab-size 50280 --d-model 768 --output loss_memory.json

Each variant runs forward and backward in a process of its own; its peak is the growth of the process' largest resident
set over what it held before the call (inputs, weights and torch itself). Needs torch and numpy only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from packmamba.compare.report import write_report
from packmamba.environment import describe_environment
from packmamba.model.loss import linear_cross_entropy

VARIANTS = ("chunked", "whole")


def measure(variant: str, tokens: int, vocab_size: int, d_model: int, dtype: torch.dtype) -> dict[str, Any]:
    """Forward and backward of the loss in this process: peak bytes over the baseline, seconds, and the loss."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, d_model, dtype=dtype).requires_grad_()
    weight = (torch.randn(vocab_size, d_model, dtype=dtype) * 0.02).requires_grad_()
    labels = torch.randint(vocab_size, (tokens,))
    linear_cross_entropy(hidden[:1], weight[:256], labels[:1] % 256)  # loads and warms up what torch loads lazily
    baseline = _peak_rss()
    start = time.perf_counter()
    if variant == "chunked":
        loss = linear_cross_entropy(hidden, weight, labels, backend="chunked")
    else:
        loss = F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")
    loss.backward()
    seconds = time.perf_counter() - start
    return {
        "variant": variant,
        "peak_bytes": _peak_rss() - baseline,
        "seconds": round(seconds, 3),
        "loss_per_token": float(loss) / tokens,
    }


def measure_in_subprocess(variant: str, tokens: int, vocab_size: int, d_model: int, dtype: str) -> dict[str, Any]:
    """`measure` in a fresh process, so that no earlier allocation hides the peak."""
    arguments = [variant, str(tokens), str(vocab_size), str(d_model), dtype]
    command = [sys.executable, "-m", "benchmarks.operators.loss_memory", "--measure", *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


def _peak_rss() -> int:
    """Bytes of the largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks loss_memory", description="Peak memory and time of the chunked loss on the CPU."
    )
    parser.add_argument("--tokens", type=int, default=16_384, help="T, tokens of the pack")
    parser.add_argument("--vocab-size", type=int, default=50_280, help="V")
    parser.add_argument("--d-model", type=int, default=768, help="width of the hidden states")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        variant, tokens, vocab_size, d_model, dtype = options.measure
        print(json.dumps(measure(variant, int(tokens), int(vocab_size), int(d_model), getattr(torch, dtype))))
        return

    results = []
    for variant in options.variants:
        print(f"{variant} ...", file=sys.stderr, flush=True)
        results.append(
            measure_in_subprocess(variant, options.tokens, options.vocab_size, options.d_model, options.dtype)
        )
    report = {
        "benchmark": "loss_memory",
        "tokens": options.tokens,
        "vocab_size": options.vocab_size,
        "d_model": options.d_model,
        "dtype": options.dtype,
        "results": results,
        "environment": describe_environment("cpu"),
    }
    for result in results:
        print(
            f"{result['variant']:>8}: peak {result['peak_bytes'] / 1e9:.2f} GB, {result['seconds']:.1f} s forward and "
            f"backward, loss {result['loss_per_token']:.6f} nats a token"
        )
    if options.output:
        write_report(options.output, report)


if __name__ == "__main__":
    main()
