"""Patterns over parameter names that match nothing, found before any model is built.

The table of parameters has every name (`nvlm.sizes.parameters`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec

from nvlm.config.adapters import NF4
from nvlm.config.schema import RunConfig
from nvlm.errors import ConfigError
from nvlm.rows import Shape, is_adapter
from nvlm.sizes.adapters import (
    KEY,
    quantization_problems,
    quantized,
    run_parameters_by_name,
)
from nvlm.sizes.parameters import VISION, is_frozen, matches

FREEZE = "stage.freeze"
LR_MULTIPLIERS = "train.optimizer.lr_multipliers"
WEIGHT_DECAY_MULTIPLIERS = "train.optimizer.weight_decay_multipliers"
WITH_WEIGHT_DECAY = "parameter that has weight decay (biases, norms and other vectors have none)"


def check_patterns(config: RunConfig) -> None:
    """
    Raises:
        ConfigError: a pattern for freezing or rates fits no parameter, one for weight decay none
            that has it, or nothing is left to train; or see `nvlm.sizes.adapters.adapters_of`; or
            matrices cannot be held in 4 bits.
    """
    _check_quantization(config)
    stage, optimizer = config.stage, config.train.optimizer
    shapes = {name: row.shape for name, row in run_parameters_by_name(config).items()}
    own = {name: shape for name, shape in shapes.items() if not is_adapter(name)}
    _check(own, stage.freeze, FREEZE)
    if all(is_frozen(name, stage.freeze) for name in shapes):
        raise nothing_left(stage.freeze)
    encoder = [name for name in shapes if name.startswith(f"{VISION}.")]
    trained = next((name for name in encoder if not is_frozen(name, stage.freeze)), None)
    if config.parallel.shares_tiles and trained is not None:
        raise ConfigError(
            f"{FREEZE} {stage.freeze} lets {trained} train: parallel.vision tile_parallel needs a "
            "frozen vision model; freeze all of it, or use parallel.vision tensor"
        )
    _check(shapes, optimizer.lr_multipliers, LR_MULTIPLIERS)
    # First against all parameters: "matches no parameter" is another mistake than "no matrix".
    _check(shapes, optimizer.weight_decay_multipliers, WEIGHT_DECAY_MULTIPLIERS)
    decaying = {name: shape for name, shape in shapes.items() if has_weight_decay(name, shape)}
    patterns = optimizer.weight_decay_multipliers
    _check(decaying, patterns, WEIGHT_DECAY_MULTIPLIERS, WITH_WEIGHT_DECAY)


def _check_quantization(config: RunConfig) -> None:
    if problems := list(quantization_problems(config)):
        raise ConfigError(*problems[:3])
    if quantized(config) and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{KEY}: quantization {NF4} needs bitsandbytes: pip install nvlm[nf4], or set it to "
            "none"
        )


def has_weight_decay(name: str, shape: Shape) -> bool:
    """Megatron-core's rule: biases, norms and other vectors have none."""
    return len(shape) > 1 and not name.endswith(".bias")


def part_of(name: str) -> str:
    """The part of the model that tables show a parameter with."""
    parts = name.split(".")
    if is_adapter(name):
        return f"{parts[0]} adapters"
    if parts[:2] == [VISION, "encoders"]:  # one of several
        return ".".join(parts[:3])
    return ".".join(parts[:2]) if parts[0] == "language_model" else parts[0]


def matcher(key: str) -> Callable[[str, str], bool]:
    """Whether a parameter's name fits a pattern of `key`; those for freezing have exceptions."""
    return matches if key == FREEZE else fnmatchcase


def no_match(
    key: str, patterns: Iterable[str], parts: Iterable[str], kind: str = "parameter"
) -> ConfigError:
    """Of `patterns`, none of which match a parameter of that kind; `parts` has the model."""
    own = sorted(part for part in parts if " " not in part)
    return ConfigError(
        f"{key}: {', '.join(map(repr, patterns))} matches no {kind}; "
        f"the model has {', '.join(part + '.*' for part in own)}"
    )


def nothing_left(freeze: list[str]) -> ConfigError:
    return ConfigError(f"{FREEZE} {freeze} leaves nothing to train")


def _check(
    shapes: Mapping[str, Shape], patterns: Iterable[str], key: str, kind: str = "parameter"
) -> None:
    fits = matcher(key)
    unmatched = [p for p in patterns if not any(fits(name, p) for name in shapes)]
    if unmatched:
        raise no_match(key, unmatched, set(map(part_of, shapes)), kind)
