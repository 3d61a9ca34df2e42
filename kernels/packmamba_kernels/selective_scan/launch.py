"""Grids, scratch and launch options of the Triton kernels. Imports triton, so it is imported where a kernel is needed.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C · I segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from packmamba_kernels._triton import cdiv, device_of
from packmamba_kernels.launcher import Launches, launches
from packmamba_kernels.schedule import CHUNK
from packmamba_kernels.selective_scan.kernel import (
    fold_states_kernel,
    segment_states_kernel,
    selective_scan_fwd_kernel,
)
from packmamba_kernels.selective_scan.kernel_backward import (
    forward_sweep_kernel,
    reverse_sweep_kernel,
    segment_grads_kernel,
    sum_blocks_kernel,
)
from packmamba_kernels.selective_scan.reference import Gradients, Tables

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tile:
    """How a kernel takes channels: BE a program of `num_warps`, RUN adjacent ones a lane."""

    BE: int
    RUN: int
    num_warps: int = 1


FORWARD = {4: Tile(64, 2), 8: Tile(64, 2), 16: Tile(64, 2), 32: Tile(32, 4), 64: Tile(16, 4), 128: Tile(8, 4)}
"""By N. Where BE = 32 RUN a lane owns whole channels and Σ_n needs no exchange between lanes; else 32 RUN / BE lanes
share a channel's states, and a lane has fewer values of B and C to hold."""

BACKWARD = {4: Tile(64, 4), 8: Tile(64, 4), 16: Tile(64, 4), 32: Tile(32, 4), 64: Tile(32, 4, 4), 128: Tile(32, 4, 8)}
"""By N. With fewer channels a program, the parts of dB and dC (8 N / BE bytes for each token and channel) would grow,
so many states are spread over warps."""

REGISTERS = {80: {"reverse_sweep": 244}, 90: {"forward_sweep": 236, "reverse_sweep": 240}}
"""By architecture, at N = 16 only: caps under which nothing spills where something would, and loops are shorter."""

PARTIAL_SUMS = 2**26
"""Elements of the scratch in which programs leave their parts of dA: it bounds the programs along the segments."""


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_states: Tensor | None,
    tables: Tables,
    delta_softplus: bool,
    return_final_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out (T, E), the final states (S, E, N) or nothing (0,), and the states that pass the links (I-S, N, E)."""
    num_states = A.shape[1]
    num_seqs, num_links = _counts(tables)
    u, delta, z = _rows(u), _rows(delta), _rows(z)
    A2, B, C = _decay_rates(A), _matrix(B), _matrix(C)
    D, delta_bias, initial = _vector(D), _vector(delta_bias), _states(initial_states)
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    links = A2.new_empty(num_links, *A2.shape)
    final = A2.new_empty((num_seqs, *A2.shape) if return_final_states else 0)
    shape = _shape(A.shape[0], B.shape[1], num_states, False)
    flags = {"HAS_BIAS": delta_bias is not None, "SOFTPLUS": delta_softplus}
    given = (u, delta, B, C, D, z, delta_bias, initial, *tables)
    launch = launches(given, "scan", num_states, *shape.sizes, delta_softplus, num_links > 0, return_final_states)
    with device_of(u):
        if num_links > 0:
            elapsed = A2.new_empty(num_links, A2.shape[1])
            launch(
                "segment_states", segment_states_kernel, num_links * shape.blocks,
                (u, delta, B, A2, delta_bias, links, elapsed, *tables, u.stride(0), delta.stride(0), *shape.sizes),
                lambda: shape.options | flags,
            )  # fmt: skip
            _fold(launch, A2, initial, links, elapsed, tables, reverse=False)
        launch(
            "forward", selective_scan_fwd_kernel, _num_segments(tables) * shape.blocks,
            (u, delta, z, B, C, A2, D, delta_bias, initial, links, out, final, *tables, num_seqs,
             u.stride(0), delta.stride(0), _stride(z), *shape.sizes),
            lambda: shape.options | flags | {
                "HAS_D": D is not None, "HAS_Z": z is not None, "HAS_INITIAL": initial is not None,
                "HAS_LINKS": num_links > 0, "STORE_FINAL": return_final_states,
            },
        )  # fmt: skip
    return out, final.mT.contiguous() if return_final_states else final, links


def backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_states: Tensor | None,
    links: Tensor,
    tables: Tables,
    delta_softplus: bool,
    return_out: bool,
) -> Gradients:
    """As `reference.backward`."""
    (num_tokens, channels), num_states = u.shape, A.shape[1]
    num_seqs, num_links = _counts(tables)
    num_segments = _num_segments(tables)
    dout = dout.contiguous()
    u, delta, z = _rows(u), _rows(delta), _rows(z)
    A2, B_rows, C_rows = _decay_rates(A), _matrix(B), _matrix(C)
    D_row, bias_row, initial, dfinal = _vector(D), _vector(delta_bias), _states(initial_states), _states(dfinal_states)
    shape = _shape(channels, B_rows.shape[1], num_states, True)
    num_programs = max(1, min(num_segments, PARTIAL_SUMS // (num_states * channels)))

    du, ddelta = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, delta))
    dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    dB_parts, dC_parts = A2.new_empty(2, shape.blocks, num_tokens, num_states)
    dA_parts = A2.new_empty(num_programs, *A2.shape)
    dD_parts, dbias_parts = (None if x is None else A2.new_empty(num_programs, channels) for x in (D, delta_bias))
    dinitial = None if initial is None else torch.empty_like(initial)
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device) if return_out else None
    inflow = A2.new_empty(num_tokens, channels)
    chunk_states = A2.new_empty(num_tokens // CHUNK, *A2.shape)
    chunk_steps = A2.new_empty(num_tokens // CHUNK + num_segments, channels)
    final = A2.new_empty(0) if dfinal is None else torch.empty_like(dfinal)
    dlinks = torch.empty_like(links)

    flags = {"HAS_Z": z is not None, "HAS_BIAS": delta_bias is not None, "SOFTPLUS": delta_softplus}
    sweep = {"HAS_D": D is not None, "HAS_INITIAL": initial is not None, "HAS_LINKS": num_links > 0}
    strides = (u.stride(0), delta.stride(0), _stride(z))
    counts = (num_seqs, num_programs, num_tokens)
    architecture = _architecture(u.device) if u.is_cuda else 0
    given = (dout, dfinal, u, delta, B_rows, C_rows, D_row, z, bias_row, initial, links, *tables)
    launch = launches(
        given, "scan backward", num_states, *shape.sizes, delta_softplus, num_links > 0, return_out, B.dtype, C.dtype
    )
    with device_of(u):
        launch(
            "forward_sweep", forward_sweep_kernel, num_programs * shape.blocks,
            (dout, u, delta, z, B_rows, C_rows, A2, D_row, bias_row, initial, links,
             inflow, chunk_states, chunk_steps, final, out, dz, dC_parts, dA_parts, dD_parts,
             *tables, *counts, *strides, *shape.sizes),
            lambda: shape.options | flags | sweep | register_cap(architecture, num_states, "forward_sweep")
            | {"STORE_FINAL": dfinal is not None, "STORE_OUT": return_out},
        )  # fmt: skip
        if num_links > 0:
            elapsed = A2.new_empty(num_links, channels)
            launch(
                "segment_grads", segment_grads_kernel, num_links * shape.blocks,
                (dout, delta, z, C_rows, A2, bias_row, dlinks, elapsed, *tables,
                 delta.stride(0), _stride(z), *shape.sizes),
                lambda: shape.options | flags,
            )  # fmt: skip
            _fold(launch, A2, dfinal, dlinks, elapsed, tables, reverse=True)
        launch(
            "reverse_sweep", reverse_sweep_kernel, num_programs * shape.blocks,
            (dout, u, delta, z, B_rows, C_rows, A2, D_row, bias_row, links, dlinks, dfinal,
             inflow, chunk_states, chunk_steps, final, du, ddelta, dB_parts, dA_parts, dbias_parts, dinitial,
             *tables, *counts, *strides, *shape.sizes),
            lambda: shape.options | flags | sweep | register_cap(architecture, num_states, "reverse_sweep")
            | {"HAS_DFINAL": dfinal is not None},
        )  # fmt: skip
        dB, dC = _sum_blocks(launch, "dB", dB_parts, B), _sum_blocks(launch, "dC", dC_parts, C)
    return (
        du,
        ddelta,
        dA_parts.sum(0).T.contiguous().to(A.dtype),
        dB,
        dC,
        None if D is None or dD_parts is None else dD_parts.sum(0).to(D.dtype),
        dz,
        None if delta_bias is None or dbias_parts is None else dbias_parts.sum(0).to(delta_bias.dtype),
        None if dinitial is None else dinitial.mT.contiguous(),
        out,
    )


def _fold(
    launch: Launches, A2: Tensor, ends: Tensor | None, links: Tensor, elapsed: Tensor, tables: Tables, *, reverse: bool
) -> None:
    """Along every document, in place: `links` from what each segment adds to what passes."""
    num_states, channels = A2.shape
    tile = FORWARD[num_states]
    _, _, seq, cu_segments, order = tables
    launch(
        "fold_states", fold_states_kernel, links.shape[0] * cdiv(channels, tile.BE),
        (A2, ends, links, elapsed, seq, cu_segments, order, channels),
        lambda: {"N": num_states, "BE": tile.BE, "RUN": tile.RUN, "HAS_ENDS": ends is not None, "REVERSE": reverse,
                 "num_warps": 1},
    )  # fmt: skip


def _sum_blocks(launch: Launches, name: str, parts: Tensor, like: Tensor) -> Tensor:
    """dB or dC in the shape and dtype of `like`, from each channel block's part."""
    blocks, num_tokens, num_states = parts.shape
    groups = 1 if like.ndim == 2 else like.shape[1]
    rows = max(1, 1024 // num_states)
    out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    programs = groups * cdiv(num_tokens, rows)
    arguments = (parts, out, num_tokens, groups, blocks // groups)
    launch(name, sum_blocks_kernel, programs, arguments, lambda: {"N": num_states, "ROWS": rows, "num_warps": 4})
    return out


@dataclass(frozen=True)
class _Shape:
    blocks: int
    """Channel blocks of all groups."""
    sizes: tuple[int, int, int]
    """E, channels of a group, G."""
    options: dict[str, Any]
    """N, and how a program takes channels."""


@cache
def _shape(channels: int, groups: int, num_states: int, backward: bool) -> _Shape:
    tile, width = (BACKWARD if backward else FORWARD)[num_states], channels // groups
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


def _counts(tables: Tables) -> tuple[int, int]:
    """S, and links: as many as segments that another one follows (at least: empty segments count)."""
    num_seqs = tables[3].shape[0] - 1
    return num_seqs, _num_segments(tables) - num_seqs


def _num_segments(tables: Tables) -> int:
    return tables[0].shape[0]


def _decay_rates(A: Tensor) -> Tensor:
    """(E, N) -> (N, E) in fp32 and units of log2: as the state lies, so that exp2 of it times Δ is the decay."""
    return (A.float().T * _LOG2_E).contiguous()


def _matrix(x: Tensor) -> Tensor:
    """B or C -> (T, G, N) contiguous fp32: converted once here, not once a program in the kernels."""
    return (x if x.ndim == 3 else x.unsqueeze(1)).float().contiguous()


def _rows(x: Any) -> Any:
    """A tensor whose last dimension has stride 1 even where it has one element."""
    return x if x is None or x.stride(1) == 1 else x.contiguous()


def _vector(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _states(x: Tensor | None) -> Tensor | None:
    """(S, E, N) -> (S, N, E), as states lie in the kernels."""
    return None if x is None else x.mT.contiguous()


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)
