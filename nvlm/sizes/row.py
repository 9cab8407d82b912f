"""A row of the table of parameters: what is known of a tensor before any process holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """Filled with one value before training."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Drawn from a normal distribution around zero before training."""

    deviation: float

    def into_residual(self, num_layers: int) -> Normal:
        """Of a matrix that writes to the residual stream, as each of `num_layers` does twice."""
        return Normal(self.deviation / (2 * num_layers) ** 0.5)


ONES, ZEROS = Constant(1.0), Constant(0.0)


class ZeroHeads(NamedTuple):
    """The part of a tensor that belongs to stored heads beyond the real ones: always zero.

    It must be: such heads would otherwise take part in the model, and in its QK-norm.
    """

    axis: int
    first: int  # the part begins here and goes on to the end of the axis

    def of(self, tensor):
        """The part of `tensor`, as a view."""
        return tensor.narrow(self.axis, self.first, tensor.shape[self.axis] - self.first)


@dataclass(frozen=True)
class Parameter:
    """A tensor of the model or, of a stack of layers, the same tensor of each.

    key: its name in checkpoints, which stack layers: `COMPONENT.NAME` without a layer's number.
    shape: of the whole tensor, of one layer.
    initial: what it is filled with before training.
    split_axis: the axis that tensor-parallel ranks share; None: each of them has all of it.
    num_layers: layers of the stack; None: no layer owns it.
    pipeline_stage: the first, the last or both, every one, or that of the layer.
    zero_heads: where heads are stored that the model does not have.
    """

    key: str
    shape: Shape
    initial: Constant | Normal
    split_axis: int | None = None
    num_layers: int | None = None
    pipeline_stage: Literal["first", "last", "first and last", "every", "its layer's"] = "first"
    zero_heads: ZeroHeads | None = None

    @property
    def component(self) -> str:
        return self.key.partition(".")[0]

    def layers(self) -> Iterator[int | None]:
        yield from [None] if self.num_layers is None else range(self.num_layers)

    def name(self, layer: int | None) -> str:
        """The parameter's name in a model that one process holds, which freeze patterns match."""
        return self.key if layer is None else self.key.replace(".layers.", f".layers.{layer}.", 1)

    @property
    def size(self) -> int:
        """Numbers in the tensor, of one layer."""
        return math.prod(self.shape)

    @property
    def num_parameters(self) -> int:
        """Of all layers."""
        return self.size * (self.num_layers or 1)

    @property
    def num_zero(self) -> int:
        """Those of zero heads, of all layers."""
        if self.zero_heads is None:
            return 0
        axis, first = self.zero_heads
        return self.num_parameters // self.shape[axis] * (self.shape[axis] - first)

    def local_shape(self, tensor_size: int) -> Shape:
        """Shape on one of `tensor_size` tensor-parallel ranks."""
        return tuple(
            size // tensor_size if axis == self.split_axis else size
            for axis, size in enumerate(self.shape)
        )
