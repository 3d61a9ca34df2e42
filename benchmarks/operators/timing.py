"""Checks an implementation of an operator against the definition, and times it; the least that a pass can take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.operators.cases import (
    IMPLEMENTATIONS,
    Call,
    Case,
    Implementation,
    Inputs,
    bytes_moved,
    make_inputs,
    naive,
    outputs_and_gradients,
    special_functions,
)
from packmamba.packing import Packing

PARTS = ("forward", "backward")

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 1e-2}
"""RMS error over RMS of an implementation's output and gradients against the definition in fp32."""

CHECKED_TOKENS, CHECKED_CHANNELS = 512, 64
"""Size of the pack that implementations are checked on."""


def check(name: str, case: Case, device: torch.device) -> None:
    """Raises RuntimeError if an implementation does not agree with the definition."""
    implementation = IMPLEMENTATIONS[name]
    small, packing = _small(case)
    inputs = make_inputs(small, device, seed=0)
    exact = {key: value.detach().cpu().float().requires_grad_() for key, value in inputs.items()}
    dout = torch.randn(small.tokens, small.channels, generator=torch.Generator().manual_seed(1)).to(small.dtype)
    expected = outputs_and_gradients(naive(small, packing), exact, dout.float())
    actual = outputs_and_gradients(_token_major(implementation, small, packing.to(device)), inputs, dout.to(device))
    for result, reference in expected.items():
        error = float((actual[result].cpu().float() - reference).norm() / reference.norm())
        if not error <= TOLERANCE[case.dtype]:
            raise RuntimeError(
                f"{name} differs from the definition in {result} of {small}: "
                f"RMS error {error:.1e}, allowed {TOLERANCE[case.dtype]:.0e}"
            )


def _small(case: Case) -> tuple[Case, Packing]:
    """The case on few enough tokens and channels for the definition; a batch of rows stays one."""
    small = replace(case, tokens=min(case.tokens, CHECKED_TOKENS), channels=min(case.channels, CHECKED_CHANNELS))
    if not case.is_batch():
        return small, small.packing()
    rows = min(case.packing().num_seqs, 4)
    length = small.tokens // rows
    return replace(small, tokens=rows * length), Packing.from_lengths([length] * rows)


def _token_major(implementation: Implementation, case: Case, packing: Packing) -> Call:
    """What it computes, from inputs in the usual layout to an output (T, E)."""
    own = implementation.build(case, packing)

    def call(inputs: Inputs) -> Tensor:
        out = own(implementation.arrange(inputs, packing))
        return out if out.ndim == 2 else out.transpose(1, 2).flatten(0, 1)  # from (rows, E, L)

    return call


def measure(name: str, case: Case, part: str, device: torch.device, runs: int) -> list[float]:
    """Milliseconds of each run, on new random data every time; two more runs go first and are not counted.

    The documents and their schedule are on the device before, as in training, where all layers share them.
    """
    packing = case.packing().to(device)
    implementation = IMPLEMENTATIONS[name]
    call = implementation.build(case, packing)
    flush = torch.empty(2**28, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def arranged(seed: int) -> Inputs:
        inputs = implementation.arrange(make_inputs(case, device, seed), packing)
        return {key: value.detach().requires_grad_() for key, value in inputs.items()}

    return [_time_once(call, arranged(seed), part, device, flush) for seed in range(runs + 2)][2:]


def try_measure(name: str, case: Case, part: str, device: torch.device, runs: int) -> dict[str, Any]:
    """`skipped`, why it could not be timed, or null; `milliseconds`, the median, min, max and number of runs, or null.

    Running out of memory is a reason, and so is whatever somebody else's package raises.
    """
    try:
        times = measure(name, case, part, device, runs)
    except torch.OutOfMemoryError:
        reason = "out of memory"
    except Exception as error:
        if not IMPLEMENTATIONS[name].peer:
            raise
        reason = f"failed: {error}"
    else:
        summary = {"median": statistics.median(times), "min": min(times), "max": max(times), "runs": len(times)}
        return {"skipped": None, "milliseconds": summary}
    torch.cuda.empty_cache()
    return {"skipped": reason, "milliseconds": None}


def describe(name: str, case: Case, part: str) -> dict[str, Any]:
    """What a row of a report says about what was measured."""
    return asdict(case) | {
        "dtype": str(case.dtype).removeprefix("torch."),
        "part": part,
        "implementation": name,
        "documents": case.packing().num_seqs,
    }


def _time_once(call: Call, inputs: Inputs, part: str, device: torch.device, flush: Tensor | None) -> float:
    if part == "forward":
        with torch.no_grad():
            return _milliseconds(lambda: call(inputs), device, flush)
    out = call(inputs)
    dout = torch.randn_like(out)
    return _milliseconds(lambda: torch.autograd.grad(out, list(inputs.values()), dout), device, flush)


def _milliseconds(call: Callable[[], Any], device: torch.device, flush: Tensor | None) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    if flush is not None:
        flush.zero_()  # nothing of the inputs stays in the L2 cache
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def device_limits(device: torch.device) -> dict[str, float | None] | None:
    """Bytes a second of a large copy, and special functions a second of the whole GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(2**30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    times = [_milliseconds(lambda: target.copy_(source), device, None) for _ in range(12)][2:]
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "clock_rate", None)
    return {
        "bytes_per_second": 2 * source.numel() / (1e-3 * statistics.median(times)),
        "special_functions_per_second": kilohertz and 16 * 1e3 * kilohertz * properties.multi_processor_count,
    }


def bounds(case: Case, part: str, limits: dict[str, float | None] | None) -> dict[str, float | None] | None:
    """Milliseconds that bytes and special functions need at least."""
    if limits is None:
        return None
    bandwidth, rate = limits["bytes_per_second"], limits["special_functions_per_second"]
    return {
        "bytes": bandwidth and 1e3 * bytes_moved(case, part) / bandwidth,
        "special_functions": rate and 1e3 * special_functions(case) / rate,
    }
