"""What every section of an encoder answers, to those that count, place, plan and convert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from nvlm.rows import Parameter

NUM_COLOUR_CHANNELS = 3
# Statistics of ImageNet's RGB values in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def feature_layer_numbers(layers: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    """`feature_layers`, which count from the last, counted from the first, 1; none for None."""
    return tuple(num_layers + 1 + layer for layer in layers or ())


def feature_layer_problems(layers: Sequence[int] | None, num_layers: int) -> Iterator[str]:
    """Why hidden states of `layers`, of so many, cannot be laid side by side."""
    if layers is None:
        return
    key = f"model.vision.feature_layers {list(layers)}"
    if len(layers) < 2 or any(low >= high for low, high in pairwise(layers)):
        yield (
            f"{key}: name two layers or more, each once and from the first to the last, such as "
            "[-12, -1]; of a single one leave it out"
        )
    elif layers[0] < -num_layers:
        yield f"{key}: {layers[0]} is before the first of {num_layers} layers"


class EncoderSettings(Protocol):
    kind: Any

    @property
    def image_size(self) -> int:
        """Width and height of a tile, in pixels."""
        ...

    @property
    def feature_size(self) -> int:
        """Channels of a patch, as the connector reads it."""
        ...

    @property
    def num_patches(self) -> int:
        """Of a tile, a square of them, as the connector reads it."""
        ...

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and deviation of RGB values in 0..1 with which pixels are normalised."""
        ...

    @property
    def parts(self) -> Mapping[str, EncoderPart]:
        """The encoders that a tile goes through, side by side: how their parameters' names begin
        -> settings. Of a single one, which is its own part, with nothing."""
        ...

    def problems(self) -> Iterator[str]:
        """Why these settings contradict each other, each in one line."""
        ...

    def split_sizes(self) -> dict[str, int]:
        """Key -> number that the tensor-parallel size has to divide; empty where each rank has all
        of the encoder."""
        ...

    def parameters(self) -> Iterator[Parameter]:
        """In the order of the forward pass; keys without the component's name."""
        ...

    def module_settings(self) -> dict[str, Any]:
        """Of a plain torch module: what it is made of."""
        ...

    def model_dump(self) -> dict[str, Any]: ...


class EncoderStack(Protocol):
    """Layers of one width."""

    hidden_size: int

    @property
    def feature_size(self) -> int:
        """Channels of a patch's features: of all the layers that they are taken from."""
        ...

    @property
    def feature_layer_numbers(self) -> tuple[int, ...]:
        """Layers whose hidden states are the features, side by side, counted from the first, 1;
        empty where that is the last built one alone."""
        ...

    patch_size: int
    # Of its norms of queries and keys.
    qk_layernorm: Any

    @property
    def num_patches(self) -> int: ...

    @property
    def num_positions(self) -> int:
        """Tokens of a tile in its layers: patches, class token and registers."""
        ...

    @property
    def num_computed_layers(self) -> int: ...

    @property
    def attention_width(self) -> int:
        """Channels of all heads, stored ones of zeros counted."""
        ...

    @property
    def inner_widths(self) -> tuple[int, int]:
        """Outputs of the MLP's first matrix or matrices, and inputs of its last."""
        ...

    @property
    def is_split(self) -> bool:
        """Whether tensor-parallel ranks share its layers."""
        ...


class EncoderPart(EncoderSettings, EncoderStack, Protocol):
    """An encoder that is no others side by side."""
