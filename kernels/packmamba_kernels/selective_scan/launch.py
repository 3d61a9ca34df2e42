"""Grids, scratch and launch options of the Triton kernels. Imports triton, so it is imported where a kernel is needed.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C · I segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from packmamba_kernels.runtime.launching import CompiledKernels, compiled_for
from packmamba_kernels.runtime.triton_glue import cdiv, device_of, empty_like
from packmamba_kernels.schedule import CHUNK, Segments
from packmamba_kernels.selective_scan import kernels_backward, kernels_forward, kernels_layout
from packmamba_kernels.selective_scan.inputs import ScanGradients, ScanInputs, ScanOptions, ScanResults
from packmamba_kernels.selective_scan.layout import from_matrices, matrix_shape, to_matrices


@dataclass(frozen=True)
class Tile:
    """How a kernel takes channels: BE a program of `num_warps`, RUN adjacent ones a lane."""

    BE: int
    RUN: int
    num_warps: int = 1


FORWARD = {4: Tile(64, 2), 8: Tile(64, 2), 16: Tile(64, 2), 32: Tile(64, 2), 64: Tile(16, 4), 128: Tile(8, 4)}
"""By N. Where BE = 32 RUN a lane owns whole channels and Σ_n needs no exchange between lanes; else 32 RUN / BE lanes
share a channel's states. Inputs of 2 bytes are copied to shared memory ahead of their use where a warp takes 64 of
them, or few enough channels that a lane takes two."""

BACKWARD = {4: Tile(64, 2), 8: Tile(64, 2), 16: Tile(64, 2), 32: Tile(32, 2), 64: Tile(32, 2, 2), 128: Tile(32, 2, 4)}
"""By N. With fewer channels a program, the parts of dB and dC (8 N / BE bytes for each token and channel) would grow,
so many states are spread over warps."""

REGISTERS = {80: {"forward": 128}, 86: {"forward": 128}, 89: {"forward": 128}, 90: {"forward": 128}}
"""By architecture, at N = 16 only: caps on a thread's registers that cost nothing and let 16 warps run on an SM."""

LEAN = {16: (80, 86, 89), 32: (80, 86, 89, 100)}
"""By N, the architectures on which the sweeps compute addresses where they are used, because kept ones would
spill; with more states all of them. It costs up to a twelfth more instructions."""

WORDS = (32, 64, 128)
"""The N for which the backward loads rows of 16-bit inputs as 32-bit words: a lane's share of a row is one channel,
and an asynchronous copy takes no less than 32 bits."""

PARTIAL_SUMS = 2**26
"""Elements of the scratch in which programs leave their parts of dA: it bounds the programs along the walks."""

BLOCK = 1024
"""Elements a program of what runs before and after the walks."""

SUM = {"BE": 64, "ROWS": 32}
"""Channels a program, and parts it loads at a time, where programs' parts of dA, dD and dbias are added."""


def forward(inputs: ScanInputs, segments: Segments, options: ScanOptions) -> ScanResults:
    """As `reference.forward`, except for the form of the states where segments begin."""
    u, delta, A, B, C, D, z, delta_bias, initial_states = _normalised(inputs)
    (num_tokens, channels), num_states, groups = u.shape, A.shape[1], inputs.num_groups
    num_links, final_wanted = segments.num_links, options.return_final_states
    matrix = matrix_shape(channels, num_states)
    shape = _shape(channels, groups, num_states, FORWARD[num_states])
    kernels = compiled_for(
        (u, delta, A, B, C, D, z, delta_bias, initial_states, segments.start),
        "scan", channels, num_states, groups, options.delta_softplus, num_links > 0, final_wanted,
    )  # fmt: skip
    out = empty_like(u)
    links = torch.empty((num_links, *matrix), dtype=torch.float32, device=u.device)
    final = links.new_empty((segments.num_seqs, *matrix) if final_wanted else 0)
    A2, BC, elapsed = _scratch(u, prod(matrix), 2 * num_tokens * groups * num_states, num_links * channels)
    architecture = _architecture(u.device) if u.is_cuda else 0
    flags = {"HAS_BIAS": delta_bias is not None, "SOFTPLUS": options.delta_softplus}
    with device_of(u):
        _prepare(kernels, A, B, C, A2, BC)
        if num_links > 0:
            kernels.launch(
                "segment_states", kernels_forward.segment_states_kernel, num_links * shape.blocks,
                (u, delta, BC, A2, delta_bias, links, elapsed, *_passed(segments),
                 u.stride(0), delta.stride(0), *shape.sizes),
                lambda: shape.options | flags,
            )  # fmt: skip
            _fold(kernels, A2, initial_states, links, elapsed, segments, channels, num_states, reverse=False)
        kernels.launch(
            "forward", kernels_forward.selective_scan_fwd_kernel, segments.num_walks * shape.blocks,
            (u, delta, z, BC, A2, D, delta_bias, initial_states, links, out, final, *_walked(segments),
             u.stride(0), delta.stride(0), _stride(z), *shape.sizes),
            lambda: shape.options | flags | register_cap(architecture, num_states, "forward") | {
                "HAS_D": D is not None, "HAS_Z": z is not None, "HAS_INITIAL": initial_states is not None,
                "HAS_LINKS": num_links > 0, "STORE_FINAL": final_wanted,
            },
        )  # fmt: skip
    return ScanResults(out, from_matrices(final, channels) if final_wanted else final, links)


def backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    inputs: ScanInputs,
    links: Tensor,
    segments: Segments,
    options: ScanOptions,
    into: Mapping[str, Tensor],
) -> ScanGradients:
    """As `reference.backward`. links: as the forward's result. into: where to write dz, if not to memory of its own;
    its last stride is 1."""
    u, delta, A, B, C, D, z, delta_bias, initial_states = _normalised(inputs)
    dout, dfinal = dout.contiguous(), _matrices(dfinal_states)
    (num_tokens, channels), num_states, groups = u.shape, A.shape[1], inputs.num_groups
    num_links, num_walks = segments.num_links, segments.num_walks
    shape = _shape(channels, groups, num_states, BACKWARD[num_states])
    size, narrow = prod(matrix_shape(channels, num_states)), num_tokens * num_states
    num_programs = max(1, min(num_walks, PARTIAL_SUMS // size))
    dz = into["dz"] if "dz" in into else _gradient(z)
    kernels = compiled_for(
        (dout, dfinal, dz, u, delta, A, B, C, D, z, delta_bias, initial_states, links, segments.start),
        "scan backward", channels, num_states, groups, options.delta_softplus, num_links > 0, options.return_out,
    )  # fmt: skip

    du, ddelta, dA, dB, dC = (empty_like(x) for x in (u, delta, A, B, C))
    dD, dbias = _gradient(D), _gradient(delta_bias)
    out = empty_like(u) if options.return_out else None
    dinitial = None if initial_states is None else torch.empty_like(initial_states)
    final = None if dfinal is None else torch.empty_like(dfinal)
    (A2, BC, inflow, chunk_states, chunk_steps,
     dB_parts, dC_parts, dA_parts, dD_parts, dbias_parts, dlinks, elapsed) = _scratch(
        u, size, 2 * narrow * groups, num_tokens * channels, num_tokens // CHUNK * size,
        (num_tokens // CHUNK + segments.num_segments) * channels, shape.blocks * narrow, shape.blocks * narrow,
        num_programs * size, num_programs * channels, num_programs * channels, num_links * size, num_links * channels,
    )  # fmt: skip

    flags = {"HAS_Z": z is not None, "HAS_BIAS": delta_bias is not None, "SOFTPLUS": options.delta_softplus}
    architecture = _architecture(u.device) if u.is_cuda else 0
    sweep = {"HAS_D": D is not None, "HAS_INITIAL": initial_states is not None, "HAS_LINKS": num_links > 0}
    sweep["LEAN"] = is_lean(architecture, num_states)
    strides = (u.stride(0), delta.stride(0), _stride(z))
    counts = (num_walks, num_programs, num_tokens)
    words = {"WORDS": loads_words(num_states, shape.options["EVEN"], dout, u, delta, z)}
    with device_of(u):
        _prepare(kernels, A, B, C, A2, BC)
        kernels.launch(
            "forward_sweep", kernels_backward.forward_sweep_kernel, num_programs * shape.blocks,
            (dout, u, delta, z, BC, A2, D, delta_bias, initial_states, links,
             inflow, chunk_states, chunk_steps, final, out, dz, dC_parts, dA_parts, dD_parts,
             *_walked(segments), *counts, *strides, _stride(dz), *shape.sizes),
            lambda: shape.options | flags | sweep | words | register_cap(architecture, num_states, "forward_sweep")
            | {"STORE_FINAL": dfinal is not None, "STORE_OUT": options.return_out},
        )  # fmt: skip
        if num_links > 0:
            kernels.launch(
                "segment_grads", kernels_backward.segment_grads_kernel, num_links * shape.blocks,
                (dout, delta, z, BC, A2, delta_bias, dlinks, elapsed, *_passed(segments),
                 delta.stride(0), _stride(z), *shape.sizes),
                lambda: shape.options | flags | words,
            )  # fmt: skip
            _fold(kernels, A2, dfinal, dlinks, elapsed, segments, channels, num_states, reverse=True)
        kernels.launch(
            "reverse_sweep", kernels_backward.reverse_sweep_kernel, num_programs * shape.blocks,
            (dout, u, delta, z, BC, A2, D, delta_bias, links, dlinks, dfinal,
             inflow, chunk_states, chunk_steps, final, du, ddelta, dB_parts, dA_parts, dbias_parts, dinitial,
             *_walked(segments), *counts, *strides, *shape.sizes),
            lambda: shape.options | flags | sweep | words | register_cap(architecture, num_states, "reverse_sweep")
            | {"HAS_DFINAL": dfinal is not None},
        )  # fmt: skip
        kernels.launch(
            "finish", kernels_layout.finish_kernel,
            (num_states + 2) * cdiv(channels, SUM["BE"]) + groups * cdiv(num_tokens, BLOCK // num_states),
            (dB_parts, dC_parts, dA_parts, dD_parts, dbias_parts, dB, dC, dA, dD, dbias,
             num_tokens, shape.blocks // groups, num_programs, channels, groups),
            lambda: {"N": num_states, **SUM, "HAS_D": D is not None, "HAS_BIAS": dbias is not None, "num_warps": 4},
        )  # fmt: skip
    dinitial_states = None if dinitial is None else from_matrices(dinitial, channels)
    return ScanGradients(du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial_states, out)


def _prepare(kernels: CompiledKernels, A: Tensor, B: Tensor, C: Tensor, A2: Tensor, BC: Tensor) -> None:
    """Fills A2 and BC: A, and B and C, as the walks take them. A is contiguous."""
    (channels, num_states), num_tokens, groups = A.shape, B.shape[0], 1 if B.ndim == 2 else B.shape[1]
    programs = cdiv(prod(matrix_shape(channels, num_states)), BLOCK) + cdiv(num_tokens * groups, BLOCK // num_states)
    strides = (B.stride(0), B.stride(-2), C.stride(0), C.stride(-2))  # the second counts for several groups only
    kernels.launch(
        "prepare", kernels_layout.prepare_kernel, programs,
        (A, B, C, A2, BC, num_tokens, channels, groups, *strides),
        lambda: {"N": num_states, "BLOCK": BLOCK, "num_warps": 4},
    )  # fmt: skip


def _fold(
    kernels: CompiledKernels, A2: Tensor, ends: Tensor | None, links: Tensor, elapsed: Tensor, segments: Segments,
    channels: int, num_states: int, *, reverse: bool,
) -> None:  # fmt: skip
    """Along every document, in place: `links` from what each segment adds to what passes."""
    tile = FORWARD[num_states]
    kernels.launch(
        "fold_states", kernels_forward.fold_states_kernel, segments.num_links * cdiv(channels, tile.BE),
        (A2, ends, links, elapsed, segments.seq, segments.cu_segments, segments.order, channels),
        lambda: {"N": num_states, "BE": tile.BE, "RUN": tile.RUN, "HAS_ENDS": ends is not None, "REVERSE": reverse,
                 "num_warps": 1},
    )  # fmt: skip


@dataclass(frozen=True)
class _Shape:
    blocks: int
    """Channel blocks of all groups."""
    sizes: tuple[int, int, int]
    """E, channels of a group, G."""
    options: dict[str, Any]
    """N, and how a program takes channels."""


@cache
def _shape(channels: int, groups: int, num_states: int, tile: Tile) -> _Shape:
    width = channels // groups
    options = {
        "N": num_states,
        "BE": tile.BE,
        "RUN": tile.RUN,
        "EVEN": width % tile.BE == 0,
        "num_warps": tile.num_warps,
    }
    return _Shape(groups * cdiv(width, tile.BE), (channels, width, groups), options)


@cache
def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def register_cap(architecture: int, num_states: int, kernel: str) -> dict[str, int]:
    """The launch option, or none."""
    caps = REGISTERS.get(architecture, {}) if num_states == 16 else {}
    return {"maxnreg": caps[kernel]} if kernel in caps else {}


def is_lean(architecture: int, num_states: int) -> bool:
    """Whether the sweeps keep no addresses over a loop."""
    return num_states > 32 or architecture in LEAN.get(num_states, ())


def loads_words(num_states: int, even: bool, *rows: Tensor | None) -> bool:
    """Whether the backward loads these rows as 32-bit words, where they have 16 bits: each has to begin at one."""
    return (
        num_states in WORDS
        and even
        and all(x is None or (x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 4 == 0) for x in rows)
    )


def _normalised(inputs: ScanInputs) -> ScanInputs:
    """The inputs as kernels take them: rows with a last stride of 1, parameters contiguous, states in matrices."""
    u, delta, A, B, C, D, z, delta_bias, initial_states = inputs
    return ScanInputs(
        _rows(u), _rows(delta), A.contiguous(), B, C, _vector(D), _rows(z), _vector(delta_bias),
        _matrices(initial_states),
    )  # fmt: skip


def _passed(segments: Segments) -> tuple[Tensor, ...]:
    """The tables of kernels that look at segments which another one follows."""
    return segments.start, segments.length, segments.seq, segments.cu_segments, segments.order


def _walked(segments: Segments) -> tuple[Tensor, ...]:
    """The tables of kernels whose programs take walks."""
    s = segments
    return s.start, s.length, s.seq, s.cu_segments, s.walks, s.walk_order


def _gradient(x: Any) -> Any:
    return None if x is None else empty_like(x)


def _scratch(like: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """fp32 memory of so many elements each, from one allocation, at multiples of 16 bytes."""
    rounded = [-(-size // 4) * 4 for size in sizes]
    return torch.empty(sum(rounded), dtype=torch.float32, device=like.device).split_with_sizes(rounded)


def _rows(x: Any) -> Any:
    """A tensor whose last dimension has stride 1 even where it has one element."""
    return x if x is None or x.stride(1) == 1 else x.contiguous()


def _vector(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _matrices(x: Tensor | None) -> Tensor | None:
    return None if x is None else to_matrices(x)


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)
