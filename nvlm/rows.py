"""A row of the table of parameters: what is known of a tensor before any process holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Shape = tuple[int, ...]
# Of Megatron-core: how a layer names one of its experts, and how checkpoints name them all.
EXPERTS, STACKED_EXPERTS = ".experts.local_experts.", ".experts.experts."


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


@dataclass(frozen=True)
class RowNorms:
    """The lengths of the rows of the matrix that an adapter is beside, whatever they are then."""


ONES, ZEROS = Constant(1.0), Constant(0.0)

# What adapters' modules are called within the linear layers that have them.
ADAPTER = "adapter"
# An fnmatch pattern of all their parameters' names.
EVERY_ADAPTER = f"*.{ADAPTER}.*"


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return f".{ADAPTER}." in name


class ZeroHeads(NamedTuple):
    """The part of a tensor that belongs to stored heads beyond the real ones: always zero.

    It must be: such heads would otherwise take part in the model, and in its QK-norm.
    """

    axis: int
    first: int  # the part begins here and goes on to the end of the axis

    def of(self, tensor):
        """The part of `tensor`, as a view."""
        return tensor.narrow(self.axis, self.first, tensor.shape[self.axis] - self.first)


class Place(NamedTuple):
    """Which of the tensors of one row: the layer's, and of its experts which one's."""

    layer: int | None = None
    expert: int | None = None

    def __str__(self) -> str:
        layer = "" if self.layer is None else f" of layer {self.layer}"
        return layer if self.expert is None else f" of expert {self.expert}{layer}"


@dataclass(frozen=True)
class Parameter:
    """A tensor of the model or, of a stack of layers, the same tensor of each.

    key: its name in checkpoints, which stack layers: `COMPONENT.NAME` without a layer's number.
    shape: of the whole tensor, of one layer, and of one of its experts.
    initial: what it is filled with before training.
    split_axis: the axis that tensor-parallel ranks share; None: each of them has all of it.
    num_layers: layers of the stack; None: no layer owns it.
    layer_numbers: where not all layers of the component have it, those that do.
    num_experts: experts of each layer; None: the layer's tensor is one. Expert-parallel ranks share
        experts; each of them has all of an expert's tensors.
    pipeline_stage: the first, the last or both, every one, or that of the layer.
    zero_heads: where heads are stored that the model does not have.
    of_layer: the layer that a tensor belongs to which is not stacked with those of other layers.
    """

    key: str
    shape: Shape
    initial: Constant | Normal | RowNorms
    split_axis: int | None = None
    num_layers: int | None = None
    layer_numbers: tuple[int, ...] | None = None
    num_experts: int | None = None
    pipeline_stage: Literal["first", "last", "first and last", "every", "its layer's"] = "first"
    zero_heads: ZeroHeads | None = None
    of_layer: int | None = None

    @property
    def component(self) -> str:
        return self.key.partition(".")[0]

    def places(self) -> Iterator[Place]:
        """Each of its tensors, as checkpoints stack them."""
        for layer in [None] if self.num_layers is None else self._layer_numbers():
            for expert in [None] if self.num_experts is None else range(self.num_experts):
                yield Place(layer, expert)

    def _layer_numbers(self) -> Sequence[int]:
        return self.layer_numbers or range(self.num_layers or 0)

    @property
    def stack_shape(self) -> Shape:
        """What checkpoints put before `shape`: the number of layers, and that of their experts."""
        return tuple(size for size in (self.num_layers, self.num_experts) if size is not None)

    def offsets(self, place: Place) -> Shape:
        """Where the tensor of `place` is in the stack, one number for each of `stack_shape`."""
        if place.layer is None:
            return ()
        index = self._layer_numbers().index(place.layer)
        return (index,) if place.expert is None else (index, place.expert)

    def place(self, offsets: Sequence[int]) -> Place:
        """The inverse of `offsets`."""
        if not offsets:
            return Place()
        layer, *expert = offsets
        return Place(self._layer_numbers()[layer], *expert)

    def name(self, place: Place) -> str:
        """The parameter's name in a model that one process holds, which freeze patterns match."""
        name = self.key
        if place.layer is not None:
            name = name.replace(".layers.", f".layers.{place.layer}.", 1)
        if place.expert is not None:
            name = name.replace(STACKED_EXPERTS, f"{EXPERTS}{place.expert}.", 1)
        return name

    def layer_of(self, place: Place) -> int | None:
        """The layer that the tensor of `place` belongs to."""
        return place.layer if self.of_layer is None else self.of_layer

    @property
    def size(self) -> int:
        """Numbers in the tensor, of one place."""
        return math.prod(self.shape)

    @property
    def num_tensors(self) -> int:
        return math.prod(self.stack_shape)

    @property
    def num_parameters(self) -> int:
        """Of all layers and experts."""
        return self.size * self.num_tensors

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
