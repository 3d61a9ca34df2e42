"""The kinds of layers as data: one frozen dataclass each, with its checks, derived sizes, FLOPs and state bytes.

d_model width of the residual stream · E channels · N states a channel · W convolution width · R step-size rank.
FLOPs count a multiply-add as two; norms and activations are not counted. The standard library and NumPy only.

The dataclasses have no slots: the command line's parser reads a default's fields from its `__dict__`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from packmamba.errors import UsageError, UsageTypeError, did_you_mean
from packmamba.visible_pairs import visible_pairs

SCAN_STATES = (4, 8, 16, 32, 64, 128)
"""The N that the selective scan has kernels for."""

LARGEST = 2**31 - 1
"""The largest size of anything; one that is larger is a slip of the finger."""


def require_positive(owner: object, *names: str) -> None:
    """Raises UsageError for a named field that is 0 or less, larger than any size can be, or NaN; null passes."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not 0 < value <= LARGEST:
            accepted = "positive" if value != value or value <= 0 else f"at most {LARGEST:,}"
            raise UsageError(f"{option_of(owner, name)} must be {accepted}, got {value}")


def option_of(owner: object, name: str) -> str:
    """A field by the name that a configuration has for it: `mamba1.d_state`, or `d_model` of the model itself."""
    kind = getattr(owner, "kind", None)
    return name if kind is None else f"{kind}.{name}"


def build_dataclass(cls: type, values: dict[str, Any]) -> Any:
    """cls(**values). Raises UsageTypeError where values are no dict, UsageError for a field that does not exist."""
    if not isinstance(values, dict):
        raise UsageTypeError(f"{cls.__name__} is made from a dict of its fields, got {values!r}")
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            hint = did_you_mean(str(key), names) or f"; its fields: {', '.join(names)}"
            raise UsageError(f"{cls.__name__} has no field {key!r}{hint}")
    return cls(**values)


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What every kind of layer has. Fields that are null are derived from the model's width by `resolve`."""

    kind: ClassVar[str]
    """The kind's name, which is also the name of its field in ModelConfig."""
    symbol: ClassVar[str]
    """The kind's symbol in a layer pattern."""

    def resolve(self, d_model: int) -> Self:
        """The same configuration with every null size filled in. Raises UsageError for sizes that do not fit."""
        raise NotImplementedError

    def flops_per_token(self, d_model: int) -> int:
        """FLOPs of a forward pass for each token, without the scores of attention."""
        raise NotImplementedError

    def flops(self, d_model: int, lengths: np.ndarray) -> int:
        """FLOPs of a forward pass over documents of these lengths (tokens), int64 (S,)."""
        return int(lengths.sum()) * self.flops_per_token(d_model)

    def state_bytes(self, d_model: int, num_tokens: int, element_size: int = 2) -> int:
        """Bytes that one document's state takes after num_tokens tokens. element_size: bytes of an activation."""
        raise NotImplementedError

    def sizes(self, *names: str) -> tuple[int, ...]:
        """Fields of a resolved configuration. Raises UsageError where one is still null."""
        values = tuple(getattr(self, name) for name in names)
        if None in values:
            name = names[values.index(None)]
            raise UsageError(f"{type(self).__name__}.{name} is null: call resolve(d_model), or take ModelConfig.layers")
        return values


@dataclass(frozen=True, kw_only=True)
class Mamba1Config(LayerConfig):
    """A Mamba-1 mixer (Gu & Dao, arXiv 2312.00752). The defaults are the paper's."""

    kind: ClassVar[str] = "mamba1"
    symbol: ClassVar[str] = "1"

    d_state: int = 16
    """N, the size of each channel's state. One of 4, 8, 16, 32, 64, 128."""
    d_conv: int = 4
    """W, the width of the causal convolution, 2 to 8."""
    expand: int = 2
    """Channels inside the mixer for each one of d_model, where d_inner is null."""
    d_inner: int | None = None
    """E, the number of channels inside the mixer; null: expand * d_model."""
    dt_rank: int | None = None
    """R, the rank of the projection that makes the step size; null: ceil(d_model / 16)."""
    dt_min: float = 1e-3
    """Smallest step size at initialisation."""
    dt_max: float = 1e-1
    """Largest step size at initialisation."""
    dt_init_floor: float = 1e-4
    """Step sizes are clamped to at least this at initialisation."""
    conv_bias: bool = True
    """Whether the causal convolution has a bias."""
    proj_bias: bool = False
    """Whether the input and output projections have biases."""

    def __post_init__(self) -> None:
        require_positive(self, "d_state", "d_conv", "expand", "d_inner", "dt_rank", "dt_min", "dt_max", "dt_init_floor")
        if self.d_state not in SCAN_STATES:
            raise UsageError(f"mamba1.d_state must be one of {', '.join(map(str, SCAN_STATES))}, got {self.d_state}")
        if not 2 <= self.d_conv <= 8:
            raise UsageError(f"mamba1.d_conv must be between 2 and 8, got {self.d_conv}")
        if self.dt_min > self.dt_max:
            raise UsageError(f"mamba1.dt_min ({self.dt_min}) is larger than dt_max ({self.dt_max})")

    def resolve(self, d_model: int) -> Mamba1Config:
        return dataclasses.replace(
            self,
            d_inner=self.d_inner or self.expand * d_model,
            dt_rank=self.dt_rank or math.ceil(d_model / 16),
        )

    def flops_per_token(self, d_model: int) -> int:
        channels, rank = self.resolve(d_model).sizes("d_inner", "dt_rank")
        projections = 2 * channels * (2 * d_model + (rank + 2 * self.d_state) + rank + d_model)
        convolution = 2 * channels * self.d_conv
        # A state: Δ·A, its exponential, times h, Δu·B, the sum, times C, the sum over n: 7. A channel: Δ·u, D·u with
        # its sum, and the gate: 4.
        scan = channels * (7 * self.d_state + 4)
        return projections + convolution + scan

    def state_bytes(self, d_model: int, num_tokens: int, element_size: int = 2) -> int:
        """The convolution's last W-1 inputs, and N states in fp32, for each channel."""
        (channels,) = self.resolve(d_model).sizes("d_inner")
        return channels * ((self.d_conv - 1) * element_size + self.d_state * 4)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(LayerConfig):
    """Causal grouped-query attention with rotary positions counted within each document."""

    kind: ClassVar[str] = "attention"
    symbol: ClassVar[str] = "*"

    num_heads: int | None = None
    """Query heads; null: d_model / head_dim."""
    num_kv_heads: int | None = None
    """Key/value heads (grouped-query attention); null: as many as query heads."""
    head_dim: int | None = None
    """Width of a head; null: d_model / num_heads, or 64 where num_heads is null too."""
    rope_theta: float = 10_000.0
    """Base of the rotary embedding's wavelengths (Su et al., arXiv 2104.09864)."""
    sliding_window: int | None = None
    """Each token sees itself and the previous sliding_window - 1 tokens of its document; null: all of them."""

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "num_kv_heads", "head_dim", "rope_theta", "sliding_window")
        if self.head_dim is not None and self.head_dim % 2:
            raise UsageError(f"attention.head_dim must be even (rotary pairs), got {self.head_dim}")

    def resolve(self, d_model: int) -> AttentionConfig:
        if self.num_heads is None and d_model % (self.head_dim or 64):
            raise UsageError(
                f"d_model ({d_model}) is not divisible by head_dim ({self.head_dim or 64}); "
                "set attention.num_heads or attention.head_dim"
            )
        if self.head_dim is None and self.num_heads is not None and d_model % self.num_heads:
            raise UsageError(
                f"d_model ({d_model}) is not divisible by attention.num_heads ({self.num_heads}); "
                "set attention.head_dim to choose the width of a head yourself"
            )
        heads = self.num_heads or d_model // (self.head_dim or 64)
        kv_heads, width = self.num_kv_heads or heads, self.head_dim or d_model // heads
        if heads % kv_heads:
            raise UsageError(f"attention.num_heads ({heads}) is not divisible by attention.num_kv_heads ({kv_heads})")
        if width % 2:
            raise UsageError(f"head_dim must be even (rotary pairs), got d_model / num_heads = {width}")
        return dataclasses.replace(self, num_heads=heads, num_kv_heads=kv_heads, head_dim=width)

    def flops_per_token(self, d_model: int) -> int:
        heads, kv_heads, width = self.resolve(d_model).sizes("num_heads", "num_kv_heads", "head_dim")
        return 2 * d_model * width * (2 * heads + 2 * kv_heads)

    def flops_per_pair(self, d_model: int) -> int:
        """FLOPs of one visible (query, key) pair: q·k and weights·v."""
        heads, width = self.resolve(d_model).sizes("num_heads", "head_dim")
        return 4 * heads * width

    def flops(self, d_model: int, lengths: np.ndarray) -> int:
        pairs = int(visible_pairs(lengths, self.sliding_window).sum())
        return super().flops(d_model, lengths) + pairs * self.flops_per_pair(d_model)

    def state_bytes(self, d_model: int, num_tokens: int, element_size: int = 2) -> int:
        """Keys and values of the tokens that a later token can see."""
        kv_heads, width = self.resolve(d_model).sizes("num_kv_heads", "head_dim")
        seen = num_tokens if self.sliding_window is None else min(num_tokens, max(1, self.sliding_window - 1))
        return 2 * seen * kv_heads * width * element_size


@dataclass(frozen=True, kw_only=True)
class MLPConfig(LayerConfig):
    """Gated MLP, SwiGLU (Shazeer, arXiv 2002.05202)."""

    kind: ClassVar[str] = "mlp"
    symbol: ClassVar[str] = "-"

    d_ff: int | None = None
    """Hidden width; null: 8/3 · d_model rounded up to a multiple of 64."""

    def __post_init__(self) -> None:
        require_positive(self, "d_ff")

    def resolve(self, d_model: int) -> MLPConfig:
        return dataclasses.replace(self, d_ff=self.d_ff or 64 * math.ceil(d_model * 8 / 3 / 64))

    def flops_per_token(self, d_model: int) -> int:
        (width,) = self.resolve(d_model).sizes("d_ff")
        return 6 * d_model * width

    def state_bytes(self, d_model: int, num_tokens: int, element_size: int = 2) -> int:
        """None: every token is computed by itself."""
        return 0


LAYER_KINDS: dict[str, type[LayerConfig]] = {cls.kind: cls for cls in (Mamba1Config, AttentionConfig, MLPConfig)}
"""Every kind that this version builds, by name. ModelConfig has a field of that name for each."""

RESERVED_SYMBOLS = {"2": "mamba2", "3": "mamba3"}
"""Symbols the pattern language keeps for layers that this version does not have yet."""
