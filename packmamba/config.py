"""What a model is, as data: layer patterns, dimensions, presets. Imports nothing heavier than the standard library.

The dataclasses have no slots: the command line's parser reads a default's fields from its `__dict__`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

LAYER_KINDS = {"1": "mamba1", "*": "attention", "-": "mlp"}
"""Layer-pattern symbols this version builds, and the kind of layer each stands for."""

RESERVED_LAYER_KINDS = {"2": "mamba2", "3": "mamba3"}
"""Symbols the pattern language keeps for layers that this version does not have yet."""

AttentionBackend = Literal["auto", "varlen", "flash", "sdpa"]

Recompute = Literal["none", "conv", "block"]


def parse_layer_pattern(layer_pattern: str) -> tuple[str, ...]:
    """One layer kind for each symbol: `1` Mamba-1, `*` attention, `-` gated MLP. Depth is the string's length.

    >>> parse_layer_pattern("1-*")
    ('mamba1', 'mlp', 'attention')

    Raises TypeError if the pattern is not a string, ValueError if it is empty or a symbol is unknown (named with
    its index).
    """
    if not isinstance(layer_pattern, str):
        raise TypeError(
            f"layer_pattern must be a string, got {layer_pattern!r} ({type(layer_pattern).__name__}); quote it in YAML"
        )
    if not layer_pattern:
        raise ValueError("layer_pattern is empty; it needs at least one symbol, such as '1'")
    known = ", ".join(f"{symbol!r} ({kind})" for symbol, kind in LAYER_KINDS.items())
    for index, symbol in enumerate(layer_pattern):
        if symbol in RESERVED_LAYER_KINDS:
            raise ValueError(
                f"layer_pattern {layer_pattern!r}: symbol {symbol!r} at index {index} stands for "
                f"{RESERVED_LAYER_KINDS[symbol]}, which this version does not have yet; available: {known}"
            )
        if symbol not in LAYER_KINDS:
            raise ValueError(
                f"layer_pattern {layer_pattern!r}: unknown symbol {symbol!r} at index {index}; available: {known}"
            )
    return tuple(LAYER_KINDS[symbol] for symbol in layer_pattern)


def _require_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value <= 0:
            raise ValueError(f"{type(owner).__name__}.{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Mamba1Config:
    """A Mamba-1 mixer (Gu & Dao, arXiv 2312.00752). The defaults are the paper's."""

    d_state: int = 16
    """N, the size of each channel's state."""
    d_conv: int = 4
    """W, the width of the causal convolution, 2 to 8."""
    expand: int = 2
    """E = expand · d_model, the number of channels inside the mixer."""
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
        _require_positive(self, "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init_floor")
        if not 2 <= self.d_conv <= 8:
            raise ValueError(f"Mamba1Config.d_conv must be between 2 and 8, got {self.d_conv}")
        if self.dt_min > self.dt_max:
            raise ValueError(f"Mamba1Config.dt_min ({self.dt_min}) is larger than dt_max ({self.dt_max})")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Causal grouped-query attention with rotary positions counted within each document."""

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
    backend: AttentionBackend = "auto"
    """varlen: torch.nn.attention.varlen; flash: the flash-attn package; sdpa: one call a document; auto: varlen on
    CUDA in fp16 or bf16, else sdpa."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_heads", "num_kv_heads", "head_dim", "rope_theta", "sliding_window")
        if self.head_dim is not None and self.head_dim % 2:
            raise ValueError(f"AttentionConfig.head_dim must be even (rotary pairs), got {self.head_dim}")


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Gated MLP, SwiGLU (Shazeer, arXiv 2002.05202)."""

    d_ff: int | None = None
    """Hidden width; null: 8/3 · d_model rounded up to a multiple of 64."""

    def __post_init__(self) -> None:
        _require_positive(self, "d_ff")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A hybrid language model: one symbol of `layer_pattern` for each pre-norm residual layer."""

    layer_pattern: str
    """One symbol a layer: `1` Mamba-1, `*` attention, `-` gated MLP. Quote it in YAML."""
    d_model: int
    """Width of the residual stream."""
    vocab_size: int
    """Rows of the embedding; every token id must be smaller."""
    mamba1: Mamba1Config = field(default_factory=Mamba1Config)
    """Every `1` layer."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Every `*` layer."""
    mlp: MLPConfig = field(default_factory=MLPConfig)
    """Every `-` layer."""
    tie_embeddings: bool = True
    """Whether the output projection shares the embedding's weight."""
    norm_eps: float = 1e-5
    """Added to the mean square inside RMSNorm."""
    residual_in_fp32: bool = True
    """Keep the residual stream in fp32 where the parameters are narrower."""
    initializer_range: float = 0.02
    """Standard deviation of the embedding at initialisation."""
    recompute: Recompute = "conv"
    """What the backward computes again instead of keeping it. conv: in Mamba layers the convolution's output, the step
    sizes and the gated output, which costs little and halves their memory. block: every layer but its scans and
    attention. none: nothing."""

    def __post_init__(self) -> None:
        kinds = parse_layer_pattern(self.layer_pattern)
        if self.recompute not in get_args(Recompute):
            raise ValueError(f"unknown recompute {self.recompute!r}; available: {', '.join(get_args(Recompute))}")
        _require_positive(self, "d_model", "vocab_size", "norm_eps", "initializer_range")
        if "attention" in kinds:
            self._check_heads()

    def _check_heads(self) -> None:
        attention = self.attention
        if attention.num_heads is None and self.d_model % (attention.head_dim or 64):
            raise ValueError(
                f"d_model ({self.d_model}) is not divisible by head_dim ({attention.head_dim or 64}); "
                "set attention.num_heads or attention.head_dim"
            )
        if attention.head_dim is None and attention.num_heads is not None and self.d_model % attention.num_heads:
            raise ValueError(
                f"d_model ({self.d_model}) is not divisible by attention.num_heads ({attention.num_heads}); "
                "set attention.head_dim to choose the width of a head yourself"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"attention.num_heads ({self.num_heads}) is not divisible by "
                f"attention.num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary pairs), got d_model / num_heads = {self.head_dim}")

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        return parse_layer_pattern(self.layer_pattern)

    @property
    def d_inner(self) -> int:
        """E, the channels inside a Mamba mixer."""
        return self.mamba1.expand * self.d_model

    @property
    def dt_rank(self) -> int:
        """R, the rank of the step-size projection."""
        return self.mamba1.dt_rank or math.ceil(self.d_model / 16)

    @property
    def num_heads(self) -> int:
        return self.attention.num_heads or self.d_model // (self.attention.head_dim or 64)

    @property
    def num_kv_heads(self) -> int:
        return self.attention.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim or self.d_model // self.num_heads

    @property
    def d_ff(self) -> int:
        return self.mlp.d_ff or 64 * math.ceil(self.d_model * 8 / 3 / 64)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, safe in a checkpoint that is loaded with `weights_only=True`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises ValueError for a field that does not exist, naming it."""
        return _build(cls, values, {"mamba1": Mamba1Config, "attention": AttentionConfig, "mlp": MLPConfig})

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """A named size, e.g. `ModelConfig.from_preset("mamba-130m", vocab_size=258)`.

        Raises ValueError for an unknown name, listing the presets.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; available: {', '.join(PRESETS)}")
        return dataclasses.replace(PRESETS[name], **overrides)


def _build(cls: type, values: dict[str, Any], nested: dict[str, type]) -> Any:
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise ValueError(f"{cls.__name__} has no field {key!r}; its fields: {', '.join(names)}")
    return cls(**{key: _build(nested[key], value, {}) if key in nested else value for key, value in values.items()})


def _presets() -> dict[str, ModelConfig]:
    """Sizes of the Mamba paper (state-spaces/mamba-*), and hybrids with one attention layer in eight; `tiny` ones on
    bytes, for a CPU."""
    sizes = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}
    presets = {
        "mamba-tiny": ModelConfig(layer_pattern="1" * 8, d_model=128, vocab_size=258),
        "hybrid-tiny": ModelConfig(layer_pattern="1111*111", d_model=128, vocab_size=258),
    }
    for size, (d_model, depth) in sizes.items():
        presets[f"mamba-{size}"] = ModelConfig(layer_pattern="1" * depth, d_model=d_model, vocab_size=50_280)
    for size, (d_model, depth) in sizes.items():
        presets[f"hybrid-{size}"] = ModelConfig(
            layer_pattern="1111*111" * (depth // 8), d_model=d_model, vocab_size=50_280
        )
    return presets


PRESETS = _presets()
