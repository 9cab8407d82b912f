"""What a connector is told of the parts that it connects, and what several connectors share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class ConnectorSizes(NamedTuple):
    """Of the tensors before and behind a connector."""

    num_patches: int  # of a tile, a square of them
    channels: int  # of a patch, as the encoder gives it
    hidden_size: int  # of the decoder


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


def shuffle_problems(factor: int, sizes: ConnectorSizes) -> Iterator[str]:
    """Why pixel shuffle cannot merge `factor` x `factor` patches of a tile."""
    side = round(sizes.num_patches**0.5)
    if side % factor:
        yield (
            f"model.connector.pixel_shuffle {factor} merges {factor} x {factor} patches, and "
            f"model.vision makes {side} x {side} of a tile (image_size / patch_size): "
            f"{factor} must divide {side}"
        )
