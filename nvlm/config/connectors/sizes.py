"""What a connector is told of the parts that it connects, and what several connectors share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from nvlm.rows import ONES, ZEROS, Parameter


class ConnectorSizes(NamedTuple):
    """Of the tensors before and behind a connector."""

    num_patches: int  # of a tile, a square of them
    channels: int  # of a patch, as the encoder gives it
    hidden_size: int  # of the decoder

    @property
    def side(self) -> int:
        """Patches along each side of a tile."""
        return round(self.num_patches**0.5)


class Product(NamedTuple):
    """A matrix product for one tile: [rows, columns] times a weight [outputs, columns]."""

    rows: int
    columns: int
    outputs: int
    is_split: bool = False  # over the tensor-parallel ranks, along columns or outputs

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.columns * self.outputs


class KeptNumbers(NamedTuple):
    """What the forward pass of a tile keeps for the backward pass on one process."""

    in_precision: int  # of the training
    in_fp32: int


class ConnectorSettings(Protocol):
    """What every section of a connector answers."""

    kind: Any

    def num_tokens(self, sizes: ConnectorSizes) -> int:
        """Of a tile."""
        ...

    def problems(self, sizes: ConnectorSizes) -> Iterator[str]:
        """Why these settings do not fit the encoder and the decoder, each in one line."""
        ...

    def split_sizes(self) -> dict[str, int]:
        """Key -> number that the tensor-parallel size has to divide; empty where each rank has all
        of the connector."""
        ...

    def products(self, sizes: ConnectorSizes) -> list[Product]:
        """Of a tile, in the order of the forward pass; the last one's are the decoder's tokens."""
        ...

    def kept_numbers(self, sizes: ConnectorSizes, tensor_size: int) -> KeptNumbers:
        """Of a tile."""
        ...

    def parameters(self, sizes: ConnectorSizes) -> Iterator[Parameter]:
        """In the order of the forward pass; keys without the component's name."""
        ...

    def model_dump(self) -> dict[str, Any]: ...


def shuffled(factor: int, sizes: ConnectorSizes) -> tuple[int, int]:
    """Tokens of a tile, and channels of each, where `factor` x `factor` patches are laid side by
    side."""
    return sizes.num_patches // factor**2, sizes.channels * factor**2


def norm_parameters(size: int) -> Iterator[Parameter]:
    """Of a LayerNorm over so many channels."""
    yield Parameter("norm.weight", (size,), ONES)
    yield Parameter("norm.bias", (size,), ZEROS)


def shuffle_problems(factor: int, sizes: ConnectorSizes) -> Iterator[str]:
    """Why pixel shuffle cannot merge `factor` x `factor` patches of a tile."""
    yield from block_problems("pixel_shuffle", factor, sizes)


def block_problems(key: str, size: int, sizes: ConnectorSizes) -> Iterator[str]:
    """Why blocks of `size` x `size` patches, as `key` says, do not cover a tile."""
    if sizes.side % size:
        yield (
            f"model.connector.{key} {size} merges {size} x {size} patches, and "
            f"model.vision makes {sizes.side} x {sizes.side} of a tile (image_size / patch_size): "
            f"{size} must divide {sizes.side}"
        )
