"""What `packmamba compare` is asked to compare: models, documents and modes, by name or file."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from packmamba.compare.modes import PACKING_STRATEGIES, Mode, parse_mode
from packmamba.config import PRESETS, ComputeOptions, ModelConfig, split_old_config
from packmamba.data.lengths import DISTRIBUTIONS, read_lengths, sample_histogram, sample_lengths
from packmamba.errors import MissingPackageError, UsageError, UsageFileError, did_you_mean, usage_errors_behind
from packmamba.shipped_configs import config_names, find_config


def load_model(
    name: str, layer_pattern: str | None = None, recompute: str | None = None
) -> tuple[ModelConfig, ComputeOptions]:
    """A preset, or the model of a YAML or JSON file: a model configuration, or a training configuration that has one,
    with its ComputeOptions where it has them, by its path or the name of a shipped one.

    Raises UsageError for a name that is none of these (lists the presets), a file that cannot be read or has no model,
    a field that does not exist; MissingPackageError for YAML without PyYAML.
    """
    if name in PRESETS:
        config, compute = PRESETS[name], ComputeOptions()
    elif Path(name).is_file() or name in config_names():
        fields, options = _model_sections(find_config(name))
        config, compute = ModelConfig.from_dict(fields), ComputeOptions.from_dict(options)
    else:
        known = f"presets: {', '.join(PRESETS)}; configurations that come with packmamba: {', '.join(config_names())}"
        hint = did_you_mean(name, [*PRESETS, *config_names()]) or f"; {known}"
        raise UsageError(f"unknown model {name!r}: neither a file nor a preset{hint}")
    if layer_pattern is not None:
        config = replace(config, layer_pattern=layer_pattern)
    if recompute is not None:
        compute = ComputeOptions.from_dict(compute.to_dict() | {"recompute": recompute})
    return config, compute


def _model_sections(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the ModelConfig and of the ComputeOptions."""
    if path.suffix == ".json":
        parse, unreadable = json.loads, ValueError
    else:
        if importlib.util.find_spec("yaml") is None:
            raise MissingPackageError(f"{path} is YAML, which needs PyYAML: pip install pyyaml, or use JSON")
        import yaml

        parse, unreadable = yaml.safe_load, yaml.YAMLError
    try:
        content = parse(path.read_text())
    except (OSError, UnicodeDecodeError, unreadable) as error:
        raise UsageFileError(f"cannot read {str(path)!r}: {' '.join(str(error).split())}") from error
    section = content if isinstance(content, dict) else {}
    section = _section(section, "model")
    compute, section = _section(section, "compute", {}), _section(section, "config")
    if "layer_pattern" not in section:
        raise UsageError(f"{path} describes no model: it has neither layer_pattern nor model.config.layer_pattern")
    section, moved = split_old_config(section)
    return section, moved | compute


def _section(values: dict[str, Any], name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """values[name] where it is a dict, nothing where it is something else; `default`, or `values`, without the name."""
    found = values.get(name, values if default is None else default)
    return found if isinstance(found, dict) else {}


def load_lengths(source: str, num_tokens: int, mean: float | None = None, seed: int = 0) -> np.ndarray:
    """Document lengths that add up to about `num_tokens`. source: a distribution's name, or a file to draw from: a
    histogram (`.json`, `.csv`), an array of documents' lengths (`.npy`), or a training configuration (`.yaml`, or the
    name of a shipped one), whose training documents are loaded and tokenised. mean: stretches them to this mean.

    Raises UsageError for a source that is none of these, naming the distributions; MissingFileError for a file that is
    not there.
    """
    if source == "giant":
        return np.array([num_tokens])
    draw = _drawing_from(source, seed)
    count = 64
    while True:
        lengths = draw(count)
        if mean is not None:
            lengths = np.maximum(1, np.round(lengths * (mean / lengths.mean()))).astype(np.int64)
        ends = np.cumsum(lengths)
        if ends[-1] >= num_tokens:
            return lengths[: int(np.searchsorted(ends, num_tokens)) + 1]
        count *= 2


def _drawing_from(source: str, seed: int) -> Callable[[int], np.ndarray]:
    """Draws so many lengths."""
    if source in DISTRIBUTIONS:
        return lambda count: sample_lengths(source, num_documents=count, seed=seed)
    if source.endswith(".npy"):
        known = read_lengths(Path(source))
        return lambda count: np.random.default_rng(seed).choice(known, count)
    if source.endswith((".json", ".csv")):
        return lambda count: sample_histogram(source, num_documents=count, seed=seed)
    if source.endswith((".yaml", ".yml")) or source in config_names():
        known = _lengths_of_data(source)
        return lambda count: np.random.default_rng(seed).choice(known, count)
    raise UsageError(
        f"unknown lengths {source!r}; available: {', '.join(DISTRIBUTIONS)}, a histogram (.json or .csv), an array of "
        f"lengths (.npy), or a training configuration (.yaml, or {', '.join(config_names())})"
    )


def _lengths_of_data(configuration: str) -> np.ndarray:
    """Tokens of the training documents of a configuration's data."""
    from jsonargparse import ArgumentError

    from packmamba.data.configuration import parse_configuration

    try:
        parser, values = parse_configuration(["--config", str(find_config(configuration))])
    except ArgumentError as error:
        raise UsageError(" ".join(str(error).split())) from error
    with usage_errors_behind():
        module = parser.instantiate(values).data
    module.setup("fit")
    return module.documents("train").lengths


def make_documents(lengths: np.ndarray, vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    """Random token ids."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, length) for length in lengths.tolist()]


def expand_modes(names: Sequence[str], batch_sizes: Sequence[int]) -> list[Mode]:
    """Modes by name; `padded` and `padded_sorted` once for each batch size, `packed:all` once for each strategy."""
    modes: list[Mode] = []
    for name in names:
        if name == "packed:all":
            modes += [Mode("packed", strategy) for strategy in PACKING_STRATEGIES]
            continue
        mode = parse_mode(name)
        if mode.kind in ("padded", "padded_sorted") and mode.size is None and batch_sizes:
            modes += [replace(mode, size=size) for size in batch_sizes]
        else:
            modes.append(mode)
    return list(dict.fromkeys(modes))


def needs_capacity(mode: Mode) -> bool:
    """Whether a mode's batches depend on the capacity."""
    return mode.kind in ("packed", "dense") or (mode.kind != "single" and mode.size is None)
