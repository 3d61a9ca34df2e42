"""What a model computes (ModelConfig), how it computes it (ComputeOptions), and named sizes. No torch.

layer pattern: one symbol for each layer. symbol: one character that stands for the configuration of a layer.
The dataclasses have no slots: the command line's parser reads a default's fields from its `__dict__`.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from packmamba.errors import UsageError, UsageTypeError, did_you_mean
from packmamba.layer_config import (
    LAYER_KINDS,
    RESERVED_SYMBOLS,
    AttentionConfig,
    LayerConfig,
    Mamba1Config,
    MLPConfig,
    build_dataclass,
    require_positive,
)

__all__ = [
    "PRESETS",
    "AttentionBackend",
    "AttentionConfig",
    "ComputeOptions",
    "LayerConfig",
    "MLPConfig",
    "Mamba1Config",
    "ModelConfig",
    "Recompute",
    "split_old_config",
]

AttentionBackend = Literal["auto", "varlen", "flash", "sdpa"]

Recompute = Literal["none", "conv", "block"]


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How a model is computed. Two runs of one checkpoint may differ in these; what they compute is the same."""

    recompute: Recompute = "conv"
    """What the backward computes again instead of keeping it. conv: in Mamba layers the convolution's output, the step
    sizes and the gated output, which costs little and halves their memory. block: every layer but its scans and
    attention. none: nothing."""
    attention_backend: AttentionBackend = "auto"
    """varlen: torch.nn.attention.varlen; flash: the flash-attn package; sdpa: one call a document; auto: varlen on
    CUDA in fp16 or bf16, else sdpa."""

    def __post_init__(self) -> None:
        _require_choice("recompute", self.recompute, Recompute)
        _require_choice("attention_backend", self.attention_backend, AttentionBackend)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, safe in a checkpoint that is loaded with `weights_only=True`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ComputeOptions:
        """The inverse of `to_dict`. Raises UsageError for a field that does not exist, naming it."""
        return build_dataclass(cls, values)


def _require_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise UsageError(
            f"unknown {name} {value!r}; available: {', '.join(get_args(choices))}"
            f"{did_you_mean(str(value), get_args(choices))}"
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A hybrid language model: one symbol of `layer_pattern` for each pre-norm residual layer.

    >>> window = {"kind": "attention", "sliding_window": 8}
    >>> config = ModelConfig(layer_pattern="1w*", d_model=64, vocab_size=100, symbols={"w": window})
    >>> [layer.kind for layer in config.layers]
    ['mamba1', 'attention', 'attention']

    Raises UsageError for a symbol that is not known, named with its index, and for sizes that do not fit each other;
    UsageTypeError for a pattern that is not a string.
    """

    layer_pattern: str
    """One symbol a layer: `1` Mamba-1, `*` attention, `-` gated MLP, and those of `symbols`. Quote it in YAML."""
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
    symbols: dict[str, Any] = field(default_factory=dict, hash=False)
    """More symbols, such as {w: {kind: attention, sliding_window: 1024}}; fields that are not named are those of the
    model's own configuration of that kind."""
    tie_embeddings: bool = True
    """Whether the output projection shares the embedding's weight."""
    norm_eps: float = 1e-5
    """Added to the mean square inside RMSNorm."""
    residual_in_fp32: bool = True
    """Keep the residual stream in fp32 where the parameters are narrower."""
    initializer_range: float = 0.02
    """Standard deviation of the embedding at initialisation."""

    def __post_init__(self) -> None:
        if not isinstance(self.symbols, dict):
            raise UsageTypeError(f"symbols must be a dict from a symbol to its layer, got {self.symbols!r}")
        object.__setattr__(self, "symbols", {name: _as_dict(value) for name, value in self.symbols.items()})
        for name in ("layer_pattern", "d_model", "vocab_size"):
            if getattr(self, name) is None:
                raise UsageError(f"{name} is not set, and a model needs it: give model.config.{name}")
        require_positive(self, "d_model", "vocab_size", "norm_eps", "initializer_range")
        _ = self.layers  # checks the pattern, the symbols and the sizes of every layer

    @cached_property
    def layers(self) -> tuple[LayerConfig, ...]:
        """The configuration of each layer, every size filled in."""
        if not isinstance(self.layer_pattern, str):
            raise UsageTypeError(
                f"layer_pattern must be a string, got {self.layer_pattern!r} ({type(self.layer_pattern).__name__}); "
                "quote it in YAML"
            )
        if not self.layer_pattern:
            raise UsageError("layer_pattern is empty; it needs at least one symbol, such as '1'")
        known = self._layers_by_symbol()
        resolved: dict[str, LayerConfig] = {}
        for index, symbol in enumerate(self.layer_pattern):
            if symbol not in known:
                raise UsageError(self._explain_unknown(symbol, index, known))
            if symbol not in resolved:
                try:
                    resolved[symbol] = known[symbol].resolve(self.d_model)
                except UsageError as error:
                    raise UsageError(f"symbols.{symbol}: {error}" if symbol in self.symbols else str(error)) from error
        return tuple(resolved[symbol] for symbol in self.layer_pattern)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """One name a layer: its kind, and for a symbol of `symbols` the symbol too, as in 'attention w'."""
        return tuple(
            f"{layer.kind} {symbol}" if symbol in self.symbols else layer.kind
            for symbol, layer in zip(self.layer_pattern, self.layers, strict=True)
        )

    def _layers_by_symbol(self) -> dict[str, LayerConfig]:
        """The configuration, not resolved, that each symbol stands for."""
        built_in = {cls.symbol: getattr(self, kind) for kind, cls in LAYER_KINDS.items()}
        added = {}
        for symbol, values in self.symbols.items():
            if not isinstance(symbol, str) or len(symbol) != 1:
                raise UsageError(f"symbols: {symbol!r} is not one character; a symbol of a layer pattern is one")
            if symbol in built_in or symbol in RESERVED_SYMBOLS:
                taken = built_in[symbol].kind if symbol in built_in else RESERVED_SYMBOLS[symbol]
                raise UsageError(f"symbols: {symbol!r} stands for {taken} already; choose another character")
            added[symbol] = self._layer_of(symbol, values)
        return built_in | added

    def _layer_of(self, symbol: str, values: dict[str, Any]) -> LayerConfig:
        kind = values.get("kind")
        if kind not in LAYER_KINDS:
            raise UsageError(
                f"symbols.{symbol}: unknown kind {kind!r}; available: {', '.join(LAYER_KINDS)}"
                f"{did_you_mean(str(kind), LAYER_KINDS)}"
            )
        fields = dataclasses.asdict(getattr(self, kind)) | {k: v for k, v in values.items() if k != "kind"}
        try:
            return build_dataclass(LAYER_KINDS[kind], fields)
        except UsageError as error:
            raise UsageError(f"symbols.{symbol}: {error}") from error

    def _explain_unknown(self, symbol: str, index: int, known: dict[str, LayerConfig]) -> str:
        available = ", ".join(f"{known_symbol!r} ({layer.kind})" for known_symbol, layer in known.items())
        if symbol in RESERVED_SYMBOLS:
            return (
                f"layer_pattern {self.layer_pattern!r}: symbol {symbol!r} at index {index} stands for "
                f"{RESERVED_SYMBOLS[symbol]}, which this version does not have yet; available: {available}"
            )
        return (
            f"layer_pattern {self.layer_pattern!r}: unknown symbol {symbol!r} at index {index}; available: {available}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, safe in a checkpoint that is loaded with `weights_only=True`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises UsageError for a field that does not exist, naming it.

        Takes dicts older than ComputeOptions too, and leaves out the fields that moved there (`split_old_config`).
        """
        values, _ = split_old_config(values)
        for kind, layer in LAYER_KINDS.items():
            if kind in values and not isinstance(values[kind], layer):
                values[kind] = build_dataclass(layer, values[kind])
        return build_dataclass(cls, values)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """A named size, e.g. `ModelConfig.from_preset("mamba-130m", vocab_size=258)`.

        Raises UsageError for an unknown name, listing the presets.
        """
        if name not in PRESETS:
            raise UsageError(f"unknown preset {name!r}; available: {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}")
        return dataclasses.replace(PRESETS[name], **overrides)


def _as_dict(value: Any) -> dict[str, Any]:
    """A layer's configuration as a plain dict with its kind, so that it survives YAML and checkpoints."""
    if isinstance(value, LayerConfig):
        return {"kind": value.kind, **dataclasses.asdict(value)}
    if not isinstance(value, dict):
        raise UsageTypeError(
            f"symbols: a symbol stands for a dict such as {{kind: attention, sliding_window: 1024}}, got {value!r}"
        )
    return copy.deepcopy(value)


def split_old_config(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of ModelConfig, fields of ComputeOptions) of a model configuration that may be older than ComputeOptions,
    when `recompute` and `attention.backend` were fields of the model."""
    model, compute = dict(values), {}
    if "recompute" in model:
        compute["recompute"] = model.pop("recompute")
    attention = model.get("attention")
    if isinstance(attention, dict) and "backend" in attention:
        compute["attention_backend"] = attention["backend"]
        model["attention"] = {key: value for key, value in attention.items() if key != "backend"}
    return model, compute


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
