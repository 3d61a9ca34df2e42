"""The CPU path of the operators against their definitions: forward, and forward with backward.

    python -m packmamba.bench.reference_speed --output bench/results/reference_speed.json

Random fp32 data, log-normal documents; outputs and gradients of both are compared before anything is timed. Each time
is the median of several runs. Needs torch and numpy only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from packmamba_kernels import causal_conv1d, selective_scan
from packmamba_kernels.causal_conv1d.naive import causal_conv1d_naive
from packmamba_kernels.selective_scan.naive import selective_scan_naive
from torch import Tensor

from packmamba.bench.environment import describe_environment
from packmamba.data.lengths import DISTRIBUTIONS, sample_lengths
from packmamba.packing import Packing

WIDTH = 4
TOLERANCE = 1e-4
"""Largest RMS error over RMS between the two implementations, outputs and gradients."""


def measure(op: str, tokens: int, channels: int, states: int, distribution: str, repeats: int) -> list[dict[str, Any]]:
    """One row for `forward` and one for `forward+backward`: seconds of both implementations and their ratio.

    Raises RuntimeError if the two do not agree.
    """
    packing = Packing.from_lengths(sample_lengths(distribution, num_tokens=tokens))
    torch.manual_seed(0)
    if op == "causal_conv1d":
        inputs = [torch.randn(tokens, channels), torch.randn(channels, WIDTH), torch.randn(channels)]
        fast = lambda x: causal_conv1d(  # noqa: E731
            *x, activation="silu", cu_seqlens=packing.cu_seqlens, schedule=packing.schedule
        )
        naive = lambda x: causal_conv1d_naive(*x, activation="silu", cu_seqlens=packing.cu_seqlens)  # noqa: E731
    else:
        token_inputs = [torch.randn(tokens, size) for size in (channels, channels, states, states, channels)]
        u, delta, B, C, z = token_inputs
        inputs = [u, delta, -torch.rand(channels, states) - 0.1, B, C, torch.randn(channels), z, torch.randn(channels)]
        fast = lambda x: selective_scan(  # noqa: E731
            *x, delta_softplus=True, cu_seqlens=packing.cu_seqlens, schedule=packing.schedule
        )
        naive = lambda x: selective_scan_naive(*x, delta_softplus=True, cu_seqlens=packing.cu_seqlens)  # noqa: E731
    dout = torch.randn(tokens, channels)
    _require_agreement(op, [_run(call, inputs, dout) for call in (fast, naive)])
    rows = []
    for part, gradient in (("forward", None), ("forward+backward", dout)):
        seconds = {
            name: _median_seconds(lambda call=call, gradient=gradient: _run(call, inputs, gradient), times)
            for name, call, times in (("reference", fast, repeats), ("naive", naive, max(1, repeats // 3)))
        }
        rows.append(
            {
                "op": op,
                "part": part,
                "tokens": tokens,
                "channels": channels,
                "states": states if op == "selective_scan" else None,
                "distribution": distribution,
                "documents": packing.num_seqs,
                "seconds": seconds,
                "speedup": seconds["naive"] / seconds["reference"],
            }
        )
    return rows


def _run(call: Callable[[list[Tensor]], Any], inputs: Sequence[Tensor], dout: Tensor | None) -> list[Tensor]:
    """The output, and where dout is given the gradient of every input."""
    if dout is None:
        with torch.no_grad():
            return [call(list(inputs))]
    leaves = [value.detach().requires_grad_() for value in inputs]
    out = call(leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def _require_agreement(op: str, results: list[list[Tensor]]) -> None:
    for i, (ours, definition) in enumerate(zip(*results, strict=True)):
        error = float((ours - definition).norm() / definition.norm())
        if not error <= TOLERANCE:
            raise RuntimeError(f"{op}: result {i} differs from the definition by {error:.1e} (allowed: {TOLERANCE})")


def _median_seconds(call: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The CPU path of the operators against their definitions.")
    parser.add_argument("--tokens", type=int, default=4096, help="T, tokens of the pack (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=256, help="E (default: %(default)s)")
    parser.add_argument("--states", type=int, default=16, help="N (default: %(default)s)")
    parser.add_argument("--distribution", choices=list(DISTRIBUTIONS), default="lognormal", help="document lengths")
    parser.add_argument("--repeats", type=int, default=9, help="runs of the CPU path; a third for the definition")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    rows = []
    print(f"{'op':<15} {'part':<17} {'definition':>11} {'CPU path':>10} {'speed-up':>9}")
    for op in ("causal_conv1d", "selective_scan"):
        for row in measure(op, options.tokens, options.channels, options.states, options.distribution, options.repeats):
            rows.append(row)
            seconds = row["seconds"]
            print(
                f"{op:<15} {row['part']:<17} {seconds['naive'] * 1e3:>8.1f} ms {seconds['reference'] * 1e3:>7.1f} ms "
                f"{row['speedup']:>8.1f}x",
                flush=True,
            )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"benchmark": "reference_speed", "results": rows, "environment": describe_environment("cpu")}
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
