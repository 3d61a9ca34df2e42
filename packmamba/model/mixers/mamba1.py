"""The Mamba-1 mixer (Gu & Dao, arXiv 2312.00752) on packed documents.

T tokens · S documents · E channels · N states a channel · W convolution width · R rank of the step size.
Parameters carry the names and shapes of state-spaces/mamba, so its checkpoints map one to one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from packmamba_kernels import causal_conv1d, selective_scan
from torch import Tensor, nn

from packmamba.config import ComputeOptions, Mamba1Config, ModelConfig
from packmamba.model.layers import Projection
from packmamba.model.mixers.base import Mixer, MixerState
from packmamba.model.mixers.mamba1_fused import mamba1_inner
from packmamba.packing import Packing


class StepSizeProjection(nn.Linear):
    """(T, R) -> (T, E) step sizes before softplus; the bias goes into the scan.

    Initialised so that softplus(bias) is log-uniform in [dt_min, dt_max] (section 3.6 of the paper), with uniform
    weights of scale R ** -0.5.
    """

    def __init__(self, dt_rank: int, d_inner: int, config: Mamba1Config) -> None:
        self.config = config  # before the parent's constructor, which calls reset_parameters
        super().__init__(dt_rank, d_inner)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        scale = self.in_features**-0.5
        nn.init.uniform_(self.weight, -scale, scale)
        low, high = math.log(self.config.dt_min), math.log(self.config.dt_max)
        step = torch.empty_like(self.bias, dtype=torch.float32).uniform_(low, high).exp()
        step = step.clamp(min=self.config.dt_init_floor)
        self.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


@dataclass(frozen=True, eq=False)
class Mamba1State(MixerState):
    """A Mamba-1 mixer after some tokens of S documents."""

    conv: Tensor
    """(S, E, W-1): the convolution's last inputs, in their dtype."""
    scan: Tensor
    """(S, E, N) fp32 (fp64 in fp64 models): the scan's states."""


class Mamba1Mixer(Mixer):
    """x (T, d_model) -> (T, d_model): gated projection, causal convolution, selective scan, projection."""

    no_decay: ClassVar[tuple[str, ...]] = ("A_log", "D")
    state_type = Mamba1State

    def __init__(self, layer: Mamba1Config, config: ModelConfig, compute: ComputeOptions) -> None:
        super().__init__()
        d_inner, dt_rank = layer.sizes("d_inner", "dt_rank")
        self.recompute = compute.recompute == "conv"  # "block" computes the whole layer again, see hybrid_lm.py
        self.splits = [dt_rank, layer.d_state, layer.d_state]
        self.in_proj = Projection(config.d_model, 2 * d_inner, bias=layer.proj_bias)
        # Holds the parameters under their usual names and shapes, (E, 1, W) and (E,); causal_conv1d does the work.
        self.conv1d = nn.Conv1d(d_inner, d_inner, layer.d_conv, groups=d_inner, bias=layer.conv_bias)
        self.x_proj = Projection(d_inner, sum(self.splits))
        self.dt_proj = StepSizeProjection(dt_rank, d_inner, layer)
        self.A_log = nn.Parameter(torch.empty(d_inner, layer.d_state, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(d_inner, dtype=torch.float32))
        self.out_proj = Projection(d_inner, config.d_model, bias=layer.proj_bias, residual_layers=len(config.layers))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A = -(1, 2, ..., N) for every channel (S4D-real), D = 1."""
        states = torch.arange(1, self.A_log.shape[1] + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(states.log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return self._mix(x, packing)[0]
        A, D, dt_bias = self._scan_parameters()
        return mamba1_inner(
            self.in_proj(x),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            dt_bias,
            A,
            D,
            self.out_proj.weight,
            self.out_proj.bias,
            packing,
        )

    def advance(self, x: Tensor, packing: Packing, state: Mamba1State | None) -> tuple[Tensor, Mamba1State]:
        out, conv, scan = self._mix(x, packing, state, return_final_states=True)
        return out, Mamba1State(conv, scan)

    def _mix(
        self, x: Tensor, packing: Packing, state: Mamba1State | None = None, *, return_final_states: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the final states of convolution and scan, empty where they are not asked for."""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (T, E) each
        A, D, dt_bias = self._scan_parameters()
        options = {
            "cu_seqlens": packing.cu_seqlens,
            "schedule": packing.schedule,
            "return_final_states": return_final_states,
        }
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        before = None if state is None else state.conv
        u, conv = _pair(causal_conv1d(u, weight, bias, activation="silu", initial_states=before, **options))
        dt, B, C = self.x_proj(u).split(self.splits, dim=-1)  # (T, R), (T, N), (T, N)
        delta = self.dt_proj(dt)
        before = None if state is None else state.scan
        y, scan = _pair(
            selective_scan(u, delta, A, B, C, D, z, dt_bias, delta_softplus=True, initial_states=before, **options)
        )
        return self.out_proj(y), conv, scan

    def _scan_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """A (E, N), D (E,) and the bias of the step sizes (E,)."""
        return -torch.exp(_wide(self.A_log)), _wide(self.D), _wide(self.dt_proj.bias)


def _pair(result: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """An operator's output and final states, the latter empty where it returns none."""
    return result if isinstance(result, tuple) else (result, result.new_empty(0))


def _wide(x: Tensor) -> Tensor:
    """In fp32, or fp64 where the model is: the scan's parameters lose too much in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
