"""What operations take on one GPU: products, attention, what only moves memory, sums over ranks.

A product of matrices takes as long as its operations at a share of the card's peak, or as reading
and writing its matrices where that is longer. Everything else but attention is bytes at a share of
the memory's bandwidth. Bytes per number are counted by hand from what each operation reads and
writes, forwards and backwards, with the kernels that the run uses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.plan.assumptions import Assumptions
from nvlm.plan.communication import Group, group, neighbour_group


@dataclass(frozen=True)
class Seconds:
    """Of a pass, by what takes them. `hidden_messages` run beside products and add nothing."""

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0  # norms, activations, sums, losses: bound by the memory
    messages: float = 0.0  # sums over tensor-parallel ranks that nothing hides
    hidden_messages: float = 0.0
    launches: float = 0.0  # what the host takes beyond the device

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self)) - self.hidden_messages

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(*(getattr(self, f.name) * factor for f in fields(self)))


NOTHING = Seconds()


@dataclass(frozen=True)
class Device:
    """A GPU in its tensor- and context-parallel groups, as the assumptions have it."""

    assumptions: Assumptions
    tensor_group: Group
    context_group: Group
    number: int  # bytes of a number

    def product(self, rows: float, inner: float, columns: float) -> float:
        """Seconds of [rows, inner] x [inner, columns]."""
        numbers = self.assumptions
        operations = 2 * rows * inner * columns
        moved = self.number * (rows * inner + inner * columns + rows * columns)
        return max(
            operations / (numbers["peak_flops"] * numbers["matmul_efficiency"]), self.moving(moved)
        )

    def moving(self, num_bytes: float) -> float:
        numbers = self.assumptions
        return num_bytes / (numbers["memory_bandwidth"] * numbers["memory_efficiency"])

    def attention(self, operations: float, direction: str) -> float:
        numbers = self.assumptions
        return operations / (numbers["peak_flops"] * numbers[f"attention_efficiency_{direction}"])


def device_of(config: RunConfig, assumptions: Assumptions) -> Device:
    parallel = config.parallel
    return Device(
        assumptions,
        group(parallel.tensor, 1, assumptions),
        neighbour_group(parallel.context, parallel.tensor, assumptions),
        DTYPES[config.train.precision].num_bytes,
    )


@dataclass(frozen=True)
class Passes:
    """A forward and a backward pass."""

    forward: Seconds
    backward: Seconds

    @property
    def total(self) -> float:
        return self.forward.total + self.backward.total

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, factor: float) -> Passes:
        return Passes(self.forward * factor, self.backward * factor)


@dataclass(frozen=True)
class LayerShape:
    """A transformer layer on one rank; numbers of one micro-batch.

    rows: tokens. products: (inner, columns) of its four matrices, this rank's part.
    hidden: numbers of a hidden state, of all rows.
    split: ranks that share rows between the linear layers.
    attention: operations of its forward pass.
    elementwise: bytes of all else, (forward, backward).
    """

    rows: float
    products: tuple[tuple[float, float], ...]
    hidden: float
    split: int
    attention: float
    elementwise: tuple[float, float]
    trains: bool


def layer_passes(shape: LayerShape, device: Device) -> Passes:
    """What a layer takes. Of the backward pass's sums over ranks, those behind the gradients of
    weights are hidden: Megatron-core starts them before."""
    products = sum(device.product(shape.rows, *sizes) for sizes in shape.products)
    sums = _sums(shape, device)
    forward = Seconds(
        matmul=products,
        attention=device.attention(shape.attention, "forward"),
        elementwise=device.moving(shape.elementwise[0]),
        messages=sums,
    )
    # Gradients of the two column-parallel inputs run beside the gradients of these weights.
    behind = 0.0
    if shape.trains:
        behind = sum(device.product(shape.rows, *sizes) for sizes in shape.products[::2])
    hidden = min(sums / 2 if shape.split > 1 else sums, behind)
    exposed = sums - hidden
    if shape.split > 1 and shape.trains:
        # Rows that were shared are gathered again for the gradients of the same weights.
        gathered = 2 * device.tensor_group.gather_seconds(shape.hidden * device.number)
        # Beside the products that give the gradients of inputs.
        hidden, exposed = hidden + min(gathered, behind), exposed + max(0.0, gathered - behind)
    backward = Seconds(
        matmul=products * (1 + shape.trains),
        # Scores are computed again: five products instead of two.
        attention=device.attention(2.5 * shape.attention, "backward"),
        elementwise=device.moving(shape.elementwise[1]),
        messages=exposed,
        hidden_messages=hidden,
    )
    numbers = device.assumptions
    return Passes(
        _with_host(forward, numbers["launches_forward"] * numbers["launch_seconds"]),
        _with_host(backward, numbers["launches_backward"] * numbers["launch_seconds"]),
    )


def _sums(shape: LayerShape, device: Device) -> float:
    """Two sums over tensor-parallel ranks in each direction; split rows take both halves apart."""
    if device.tensor_group.size == 1:
        return 0.0
    return 2 * device.tensor_group.reduce_seconds(shape.hidden * device.number)


def _with_host(seconds: Seconds, host: float) -> Seconds:
    return seconds + Seconds(launches=max(0.0, host - seconds.total))
