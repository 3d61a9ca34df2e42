"""What `python -m benchmarks kernels` measures: operators on random packed data, by each implementation; their bounds.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · W width of the convolution.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from packmamba_kernels import causal_conv1d, selective_scan
from packmamba_kernels.causal_conv1d.naive import causal_conv1d_naive
from packmamba_kernels.selective_scan.naive import selective_scan_naive
from torch import Tensor

from packmamba.compare.peers import boundary_argument
from packmamba.data.lengths import sample_lengths
from packmamba.packing import Packing

WIDTH = 4
"""W of every measured convolution."""

OPS = ("causal_conv1d", "selective_scan")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Inputs = dict[str, Any]
"""Tensors by argument name."""
Call = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Case:
    """One operator at one size. SiLU, bias, D, gate and softplus are on, as in a Mamba mixer."""

    op: str
    tokens: int
    channels: int
    states: int | None
    """N; None for the convolution."""
    distribution: str
    dtype: torch.dtype

    def packing(self) -> Packing:
        """The documents and their schedule, on the CPU; built once."""
        return _packing(self.distribution, self.tokens)

    def is_batch(self) -> bool:
        """Whether all documents have one length: the pack is a batch of rows then, one document each."""
        return bool((self.packing().lengths == self.packing().max_seqlen).all())

    def __str__(self) -> str:
        states = f" N={self.states}" if self.states else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op} T={self.tokens:,} E={self.channels:,}{states} {dtype} {self.distribution}"


@lru_cache(maxsize=4)
def _packing(distribution: str, tokens: int) -> Packing:
    return Packing.from_lengths(sample_lengths(distribution, num_tokens=tokens))


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random inputs; parameters in fp32, activations in the case's dtype, all leaves that need a gradient."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    tokens, channels, dtype = case.tokens, case.channels, case.dtype
    if case.op == "causal_conv1d":
        inputs = {
            "x": normal(tokens, channels, dtype=dtype),
            "weight": normal(channels, WIDTH),
            "bias": normal(channels),
        }
    else:
        assert case.states is not None
        inputs = {
            "u": normal(tokens, channels, dtype=dtype),
            "delta": normal(tokens, channels, dtype=dtype),
            "A": -(1.0 + normal(channels, case.states).abs()),
            "B": normal(tokens, case.states, dtype=dtype),
            "C": normal(tokens, case.states, dtype=dtype),
            "D": normal(channels),
            "z": normal(tokens, channels, dtype=dtype),
            "delta_bias": normal(channels) - 4.0,  # steps of about 0.02
        }
    return {name: value.requires_grad_() for name, value in inputs.items()}


def outputs_and_gradients(call: Call, inputs: Inputs, dout: Tensor) -> dict[str, Tensor]:
    """`out`, and the gradient of each input x of Σ dout · out as `dx`."""
    out = call(inputs)
    gradients = torch.autograd.grad(out, list(inputs.values()), dout)
    return {"out": out.detach()} | {f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}


# --- implementations ------------------------------------------------------------------------------------------------


def ours(case: Case, packing: Packing) -> Call:
    """packmamba_kernels' operator: its Triton kernel on CUDA, its reference on the CPU."""
    flags: dict[str, Any] = {"cu_seqlens": packing.cu_seqlens, "schedule": packing.schedule}
    if case.op == "causal_conv1d":
        return lambda inputs: _tensor(causal_conv1d(**inputs, activation="silu", **flags))
    return lambda inputs: _tensor(selective_scan(**inputs, delta_softplus=True, **flags))


def naive(case: Case, packing: Packing) -> Call:
    """The definition, token by token."""
    if case.op == "causal_conv1d":
        return lambda inputs: _tensor(
            causal_conv1d_naive(**inputs, activation="silu", cu_seqlens=packing.host_cu_seqlens)
        )
    return lambda inputs: _tensor(
        selective_scan_naive(**inputs, delta_softplus=True, cu_seqlens=packing.host_cu_seqlens)
    )


def mamba_ssm(case: Case, packing: Packing) -> Call:
    """mamba-ssm's `selective_scan_cuda`, which knows no documents: every row of its batch is one."""
    function = _mamba_ssm_scan()
    return lambda inputs: function(**inputs, delta_softplus=True)


def mamba_ssm_fork(case: Case, packing: Packing) -> Call:
    """PackMamba's kind of mamba-ssm: one row, reset at the documents that it takes as one more argument.

    Raises ImportError where the installed mamba-ssm has no such argument.
    """
    function = _mamba_ssm_scan()
    name = boundary_argument(function)
    if name is None:
        raise ImportError("the installed mamba-ssm takes no document boundaries")
    boundaries = {name: packing.position_ids[None] if name == "position_indices" else packing.cu_seqlens}
    return lambda inputs: function(**inputs, **boundaries, delta_softplus=True)


def _mamba_ssm_scan() -> Callable[..., Tensor]:
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn


def causal_conv1d_package(case: Case, packing: Packing) -> Call:
    """The causal-conv1d package, channel-last, with `seq_idx`."""
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn

    def call(inputs: Inputs) -> Tensor:
        x = inputs["x"].T[None]  # (1, E, T), channels contiguous
        weight, bias = inputs["weight"].to(x.dtype), inputs["bias"].to(x.dtype)
        return function(x, weight, bias, seq_idx=packing.seq_idx[None], activation="silu")[0].T

    return call


def fla_conv(case: Case, packing: Packing) -> Call:
    """flash-linear-attention's Triton convolution, with `cu_seqlens`."""
    function = importlib.import_module("fla.modules.convolution").causal_conv1d

    def call(inputs: Inputs) -> Tensor:
        out = function(
            inputs["x"][None], inputs["weight"], inputs["bias"], activation="silu", cu_seqlens=packing.cu_seqlens
        )
        return (out[0] if isinstance(out, tuple) else out)[0]

    return call


def token_major(inputs: Inputs, packing: Packing) -> Inputs:
    return inputs


def channel_first(inputs: Inputs, rows: int) -> Inputs:
    """Activations (T, width) as (rows, width, T / rows), contiguous."""
    activations = {
        name: inputs[name].unflatten(0, (rows, -1)).transpose(1, 2).contiguous()
        for name in ("u", "delta", "B", "C", "z")
    }
    return inputs | activations


@dataclass(frozen=True)
class Implementation:
    ops: tuple[str, ...]
    build: Callable[[Case, Packing], Call]
    """Returns the call to be timed. Raises ImportError where what it needs is missing."""
    peer: bool = False
    """Whether it is somebody else's: it runs on CUDA only, and what it raises is its result."""
    resets: bool = True
    """Whether it keeps documents apart. One that does not runs where they are the rows of a batch."""
    arrange: Callable[[Inputs, Packing], Inputs] = token_major
    """Inputs in the layout it works on, made before the time is taken. What it returns then, (rows, E, L), stays."""


IMPLEMENTATIONS = {
    "packmamba": Implementation(OPS, ours),
    "naive": Implementation(OPS, naive),
    "mamba-ssm (no resets)": Implementation(
        ("selective_scan",),
        mamba_ssm,
        peer=True,
        resets=False,
        arrange=lambda inputs, packing: channel_first(inputs, packing.num_seqs),
    ),
    "mamba-ssm fork": Implementation(
        ("selective_scan",), mamba_ssm_fork, peer=True, arrange=lambda inputs, packing: channel_first(inputs, 1)
    ),
    "causal-conv1d": Implementation(("causal_conv1d",), causal_conv1d_package, peer=True),
    "fla": Implementation(("causal_conv1d",), fla_conv, peer=True),
}
"""By the name in the report."""


def why_not(name: str, case: Case, device: torch.device, naive_tokens: int) -> str | None:
    """Why an implementation is not measured; None where it is."""
    implementation = IMPLEMENTATIONS[name]
    if name == "naive" and case.tokens > naive_tokens:
        return f"only up to {naive_tokens:,} tokens (--naive-tokens)"
    if implementation.peer:
        if device.type != "cuda":
            return "missing: a peer for CUDA only"
        try:
            implementation.build(case, case.packing())
        except ImportError as error:
            return f"missing: {error}"
    if not implementation.resets and not case.is_batch():
        return "keeps no documents apart: only where all have one length"
    return None


def _tensor(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(result, Tensor)
    return result


# --- bounds ---------------------------------------------------------------------------------------------------------


def bytes_moved(case: Case, part: str) -> int:
    """Bytes of a pass that reads every input and writes every output once; the backward reads the inputs and dout and
    writes every gradient."""
    size = torch.finfo(case.dtype).bits // 8
    rows = case.tokens * case.channels * size
    if case.op == "causal_conv1d":
        parameters = 4 * case.channels * (WIDTH + 1)
        return 2 * rows + parameters if part == "forward" else 3 * rows + 2 * parameters
    assert case.states is not None
    narrow = 2 * case.tokens * case.states * size  # B and C
    parameters = 4 * case.channels * (case.states + 2)
    if part == "forward":
        return 4 * rows + narrow + parameters  # u, delta, z, out
    return 7 * rows + 2 * narrow + 2 * parameters  # u, delta, z, dout, du, ddelta, dz


def special_functions(case: Case) -> int:
    """Exponentials, logarithms and reciprocals of a pass, forward or backward: SiLU 2; the scan N decays and 2 of the
    softplus besides."""
    per_channel = 2 if case.states is None else case.states + 4
    return case.tokens * case.channels * per_channel
