"""The table of all parameters: names, shapes, how they are split, and what they begin as.

Everything that needs one of these facts reads them here: counts, initialisation, conversion, the
check of pipeline stages, costs of a step, memory. Names are those of the model with local layers;
with Transformer Engine's they are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from nvlm.config.encoders.settings import EncoderPart
from nvlm.config.schema import ModelConfig
from nvlm.rows import Parameter, is_adapter
from nvlm.sizes.components import qwen2

VISION = "vision_model"
PROJECTOR = "vision_projection"
LANGUAGE = "language_model"

# Before a pattern of `stage.freeze`: what it matches trains after all.
TRAINS = "!"

# Component, which its parameters' names begin with -> its rows, in the order of the forward pass.
COMPONENTS: dict[str, Callable[[ModelConfig], Iterator[Parameter]]] = {
    VISION: lambda model: model.vision.parameters(),
    PROJECTOR: lambda model: _connectors(model),
    LANGUAGE: qwen2.parameters,
}


def other_connectors(model: ModelConfig) -> list[str]:
    """Names, below the first connector, of those of earlier encoder layers, in their order."""
    kind = "level" if model.reads_levels_in_turn else "deepstack"
    return [f"{kind}_{number}" for number in range(model.num_connectors - 1)]


def _connectors(model: ModelConfig) -> Iterator[Parameter]:
    rows = list(model.connector.parameters(model.connector_sizes))
    yield from rows
    for name in other_connectors(model):
        for row in rows:
            yield replace(row, key=f"{name}.{row.key}")


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one component."""

    total: int
    trainable: int

    @property
    def frozen(self) -> int:
        return self.total - self.trainable

    def __add__(self, other: ParameterCount) -> ParameterCount:
        return ParameterCount(self.total + other.total, self.trainable + other.trainable)


def encoder_parts(model: ModelConfig) -> dict[str, EncoderPart]:
    """Part of the model, as `component` is one -> the encoder that its parameters are of."""
    return {
        f"{VISION}.{prefix}".removesuffix("."): part for prefix, part in model.vision.parts.items()
    }


def component_parameters(model: ModelConfig, component: str) -> list[Parameter]:
    """The rows of one component, in the order of the forward pass."""
    return [replace(row, key=f"{component}.{row.key}") for row in COMPONENTS[component](model)]


def part_parameters(model: ModelConfig, part: str) -> list[Parameter]:
    """The rows of one encoder, a key of `model.vision.parts`."""
    name = f"{VISION}.{part}".removesuffix(".")
    return [row for row in component_parameters(model, VISION) if row.key.startswith(f"{name}.")]


def parameter_table(model: ModelConfig) -> list[Parameter]:
    """The rows of all components."""
    return [row for component in COMPONENTS for row in component_parameters(model, component)]


def parameters_by_key(model: ModelConfig) -> dict[str, Parameter]:
    """Name in checkpoints -> row."""
    return {row.key: row for row in parameter_table(model)}


def parameters_by_name(model: ModelConfig) -> dict[str, Parameter]:
    """Name in the whole model, of each layer and expert -> row."""
    return {row.name(place): row for row in parameter_table(model) for place in row.places()}


def is_frozen(name: str, freeze: Sequence[str]) -> bool:
    """Whether the last of the patterns that match the whole-model name freezes it; one that begins
    with `!` lets it train. Adapters always train.

    Of a run, `freeze` is what `nvlm.sizes.adapters.frozen_patterns` says.
    """
    if is_adapter(name):
        return False
    for pattern in reversed(freeze):
        if matches(name, pattern):
            return not pattern.startswith(TRAINS)
    return False


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern of `stage.freeze` says something of a whole-model name."""
    return fnmatchcase(name, pattern.removeprefix(TRAINS))


def count_parameters(
    named: Mapping[str, Parameter], freeze: Sequence[str], component: str | None = None
) -> ParameterCount:
    """How many numbers the parameters `named` have; of one component, or of all.

    A component is also a part of one, such as one of several encoders (`encoder_parts`).
    """
    total = trainable = 0
    for name, row in named.items():
        if component is None or name.startswith(f"{component}."):
            total += row.size
            trainable += 0 if is_frozen(name, freeze) else row.size
    return ParameterCount(total, trainable)


def num_zero_parameters(model: ModelConfig) -> int:
    """Parameters of stored heads that the model does not have."""
    return sum(row.num_zero for row in parameter_table(model))
