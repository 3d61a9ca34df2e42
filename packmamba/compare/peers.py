"""The same model with another package's Mamba mixers, where that package is importable.

mamba-ssm's mixer takes (rows, L, d_model) and knows no documents, so each row is one: a padded batch, a single
document, or rows of joined documents that leak into each other. Forks in the manner of PackMamba take the boundaries of
a packed row as `cu_seqlens` or `position_indices`; they are told by their signature, and by the loss they have to agree
on.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from packmamba.compare.modes import Mode
from packmamba.config import ComputeOptions, LayerConfig, Mamba1Config, ModelConfig
from packmamba.model import HybridLM
from packmamba.model.block import ResidualBlock
from packmamba.packing import Packing


def why_missing(mode: Mode, config: ModelConfig) -> str | None:
    """Why a peer's mode cannot run; None where it can, and for modes without a peer."""
    if mode.peer is None:
        return None
    for layer in config.layers:
        if not isinstance(layer, Mamba1Config):
            return f"{mode.peer} is compared on models of Mamba-1 layers only, not {config.layer_pattern!r}"
        if layer.d_inner != layer.expand * config.d_model:
            return f"{mode.peer}'s mixer has expand * d_model channels, not d_inner = {layer.d_inner}"
    try:
        mixer = _mamba_class()
    except ImportError as error:
        return str(error)
    if mode.kind == "packed" and boundary_argument(mixer.forward) is None:
        return "the installed mamba-ssm takes no document boundaries"
    return None


def peer_model(config: ModelConfig, compute: ComputeOptions) -> HybridLM:
    """A model with mamba-ssm's mixers; its parameters have the names and shapes of packmamba's.

    Raises ImportError where mamba-ssm is not there.
    """
    model = HybridLM(config, compute)
    model.backbone.layers = nn.ModuleList(_PeerBlock(layer, config, compute) for layer in config.layers)
    return model


class _PeerBlock(ResidualBlock):
    def __init__(self, layer: LayerConfig, config: ModelConfig, compute: ComputeOptions) -> None:
        super().__init__(layer, config, compute)
        assert isinstance(layer, Mamba1Config)  # why_missing asks before
        mixer_class = _mamba_class()
        self.mixer = mixer_class(
            config.d_model,
            d_state=layer.d_state,
            d_conv=layer.d_conv,
            expand=layer.expand,
            dt_rank=layer.dt_rank,
            conv_bias=layer.conv_bias,
            bias=layer.proj_bias,
        )
        self.boundary_argument = boundary_argument(mixer_class.forward)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        hidden, rows = self.norm(x), packing.num_seqs
        if len(set(packing.host_lengths)) == 1:
            out = self.mixer(hidden.view(rows, -1, hidden.shape[-1]))
        elif self.boundary_argument == "cu_seqlens":
            out = self.mixer(hidden[None], cu_seqlens=packing.cu_seqlens)
        else:
            out = self.mixer(hidden[None], position_indices=packing.position_ids[None])
        return x + out.reshape(hidden.shape)


def _mamba_class() -> Any:
    return importlib.import_module("mamba_ssm.modules.mamba_simple").Mamba


def boundary_argument(function: Callable[..., Any]) -> str | None:
    """The argument by which a function of mamba-ssm's takes the documents of a row; None where it has none.

    Where there are both, it is `position_indices`: `cu_seqlens` then says where to collect final states.
    """
    parameters = inspect.signature(function).parameters
    return next((name for name in ("position_indices", "cu_seqlens") if name in parameters), None)
