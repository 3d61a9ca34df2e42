"""Host time of an operator call: how long Python is busy before it can go on, and a small pack's GPU has to wait.

    python -m benchmarks host --output benchmarks/results/host.json

On CUDA, calls are enqueued a few at a time, so that the queue never fills, and the GPU is waited for outside the
timing; a call that waits for it by itself is an error. Beside it, what the same work takes when replayed as a CUDA
graph, where the host does nothing. On the CPU, kernels are launched by Triton's own code into a driver that does
nothing (`no_gpu.py`), on tensors so small that torch's own operators compute next to nothing.

T tokens in a pack · E channels · N states of a channel · W width of the convolution · R rank of the step size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from packmamba_kernels import causal_conv1d, selective_scan
from torch import Tensor

from packmamba.compare.report import positive, write_report
from packmamba.environment import describe_environment
from packmamba.model.mixers.mamba1_fused import mamba1_inner
from packmamba.packing import Packing

CALLS = 10
"""Calls enqueued before the GPU is waited for: a few hundred launches, which the queue has room for."""

STATES, WIDTH = 16, 4


@dataclass(frozen=True)
class Size:
    lengths: tuple[int, ...]
    """Tokens of each document. Some are longer than a segment, so that state is passed."""
    channels: int
    rank: int


SIZES = {"cuda": Size((1500, 40, 700, 1856), 1536, 48), "cpu": Size((66, 2, 12), 64, 4)}

Call = Callable[[], Tensor]


def operators(size: Size, device: torch.device) -> dict[str, tuple[Call, list[Tensor]]]:
    """By name: a call, and the tensors that need a gradient. bf16 activations, fp32 parameters, as under autocast."""
    packing = Packing.from_lengths(size.lengths).to(device)
    generator = torch.Generator(device).manual_seed(0)
    tokens, channels = packing.num_tokens, size.channels

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device)
        return values.to(dtype).requires_grad_()

    def rows(columns: int) -> Tensor:
        return leaf(tokens, columns, dtype=torch.bfloat16)

    documents: dict[str, Any] = {"cu_seqlens": packing.cu_seqlens, "schedule": packing.schedule}
    conv = {"x": rows(channels), "weight": leaf(channels, WIDTH), "bias": leaf(channels)}
    scan = {"u": rows(channels), "delta": rows(channels), "B": rows(STATES), "C": rows(STATES), "z": rows(channels)}
    scan |= {"A": leaf(channels, STATES), "D": leaf(channels), "delta_bias": leaf(channels)}
    mixer = {"xz": rows(2 * channels), "conv_weight": leaf(channels, WIDTH), "conv_bias": leaf(channels)}
    mixer |= {"x_proj_weight": leaf(size.rank + 2 * STATES, channels), "dt_proj_weight": leaf(channels, size.rank)}
    mixer |= {"dt_bias": leaf(channels), "A": leaf(channels, STATES), "D": leaf(channels)}
    mixer |= {"out_proj_weight": leaf(channels // 2, channels)}

    nothing = {name: value.detach().clone().requires_grad_() for name, value in scan.items()}
    outputs = {name: value.detach().clone() for name, value in scan.items()}

    def call_nothing() -> Tensor:
        return _Nothing.apply(*nothing.values(), tuple(outputs.values()))  # pyright: ignore[reportReturnType]

    def call_conv() -> Tensor:
        out = causal_conv1d(**conv, activation="silu", **documents)
        assert isinstance(out, Tensor)
        return out

    def call_scan() -> Tensor:
        out = selective_scan(**scan, delta_softplus=True, **documents)
        assert isinstance(out, Tensor)
        return out

    def call_mixer() -> Tensor:
        return mamba1_inner(**mixer, out_proj_bias=None, packing=packing)

    return {
        "autograd alone": (call_nothing, list(nothing.values())),
        "causal_conv1d": (call_conv, list(conv.values())),
        "selective_scan": (call_scan, list(scan.values())),
        "mamba1_inner": (call_mixer, list(mixer.values())),
    }


class _Nothing(torch.autograd.Function):
    """Returns what it is given, forward and backward: what torch takes for a function of as many inputs as a scan's."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, outputs = inputs
        ctx.save_for_backward(*tensors)
        ctx.outputs = outputs
        return outputs[0].view_as(outputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _ = ctx.saved_tensors
        return *ctx.outputs, None


def measure(call: Call, leaves: Sequence[Tensor], device: torch.device, runs: int) -> dict[str, list[float]]:
    """Host microseconds of a call, by part: forward, backward, and both, one entry for each run of CALLS calls.

    Raises RuntimeError where a call waits for the GPU.
    """
    out = call()
    dout = torch.randn_like(out)

    def backward(out: Tensor) -> None:
        torch.autograd.grad(out, leaves, dout)

    def both() -> None:
        backward(call())

    backward(out)  # compiles what the calls launch
    times: dict[str, list[float]] = {"forward": [], "backward": [], "both": []}
    for _ in range(runs):
        outs: list[Tensor] = []
        times["forward"].append(_enqueue(lambda outs=outs: outs.append(call()), device))
        left = iter(outs)
        times["backward"].append(_enqueue(lambda left=left: backward(next(left)), device))
        times["both"].append(_enqueue(both, device))
    return times


def _enqueue(call: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    with _no_waiting(device):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return 1e6 * (time.perf_counter() - start) / CALLS


@contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
    """Torch raises where it would wait for the GPU."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def replay(call: Call, leaves: Sequence[Tensor], device: torch.device, runs: int) -> float | None:
    """Microseconds of the GPU for a forward and backward replayed as a CUDA graph, the median; None on the CPU."""
    if device.type != "cuda":
        return None
    dout = torch.randn_like(call())
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # a warm-up on the side, as torch's documentation asks
        torch.autograd.grad(call(), leaves, dout)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.autograd.grad(call(), leaves, dout)
    times = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def run(device: torch.device, runs: int) -> list[dict[str, Any]]:
    """One row for each call."""
    size = SIZES[device.type]
    rows = []
    with _counting_launches(device) as launches:
        for name, (call, leaves) in operators(size, device).items():
            times = measure(call, leaves, device, runs)
            before = launches()
            out = call()
            torch.autograd.grad(out, leaves, torch.ones_like(out))
            rows.append(
                {
                    "op": name,
                    "tokens": sum(size.lengths),
                    "channels": size.channels,
                    "launches": launches() - before,
                    "microseconds": {
                        part: {"min": min(values), "median": statistics.median(values)}
                        for part, values in times.items()
                    },
                    "graph_microseconds": replay(call, leaves, device, runs),
                }
            )
    return rows


@contextmanager
def _counting_launches(device: torch.device) -> Iterator[Callable[[], int]]:
    """On the CPU, launches do nothing inside; yields how many kernels were launched so far, which on CUDA stays 0."""
    if device.type == "cuda":
        yield lambda: 0
        return
    from benchmarks.compiler.no_gpu import launches_do_nothing

    with launches_do_nothing() as driver:
        yield lambda: driver.launches


HEADER = f"{'call':<15}{'launches':>9}{'forward µs':>12}{'backward µs':>12}{'both µs':>9}{'graph µs':>10}"


def render_row(row: dict[str, Any]) -> str:
    times, replayed = row["microseconds"], row["graph_microseconds"]
    line = f"{row['op']:<15}{row['launches'] or '':>9}"
    line += f"{times['forward']['min']:>12.0f}{times['backward']['min']:>12.0f}{times['both']['min']:>9.0f}"
    return line + (f"{'':>10}" if replayed is None else f"{replayed:>10.0f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0. Wrong options leave through argparse with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks host",
        description="Host time of an operator call, forward and backward: with CUDA where there is a GPU, else with "
        "kernel launches that do nothing.",
    )
    parser.add_argument("--runs", type=positive, default=1000, help=f"of {CALLS} calls each (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/host.json"), help="JSON (default: %(default)s)")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    environment = describe_environment(device)
    print(f"{environment['device']}, torch {torch.__version__}; the shortest of {options.runs} runs")
    print("kernel launches did nothing" if device.type == "cpu" else "no call waited for the GPU")
    rows = run(device, options.runs)
    print(HEADER, *map(render_row, rows), sep="\n")
    launches = "done" if device.type == "cuda" else "do nothing"
    write_report(
        options.output, {"benchmark": "host", "launches": launches, "results": rows, "environment": environment}
    )
    print(f"results: {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
