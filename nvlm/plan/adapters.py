"""What adapters take on one GPU, beside the layers that have them."""

from __future__ import annotations

import math

from nvlm.config.adapters import NF4
from nvlm.config.schema import RunConfig
from nvlm.plan.seconds import Device, Passes, Seconds
from nvlm.sizes.adapters import Adapter, adapters_of
from nvlm.sizes.memory import packed_bytes


def adapter_passes(config: RunConfig, component: str, rows: float, device: Device) -> Passes:
    """All of a component's or an encoder's, for so many rows through it; what ranks exchange is not
    counted.

    Each has two products forwards and four backwards. Its output is added to the layer's, and the
    gradient of its input to that of the layer.
    """
    forward = backward = Seconds()
    for adapter in adapters_of(config):
        if adapter.module.startswith(f"{component}."):
            outputs, inputs = adapter.matrix.local_shape(config.parallel.tensor)
            rank = adapter.settings.rank
            products = device.product(rows, inputs, rank * adapter.num_parts)
            products += device.product(rows, rank, outputs)
            added = device.moving(3 * rows * outputs * device.number)
            forward = forward + Seconds(products, elementwise=added) + _lengths(adapter, device)
            forward = forward + _unpacking(adapter, device)
            added = device.moving(3 * rows * inputs * device.number)
            backward = backward + Seconds(2 * products, elementwise=added)
            backward = backward + _unpacking(adapter, device)
    return Passes(forward, backward)


def _unpacking(adapter: Adapter, device: Device) -> Seconds:
    """Of a matrix that is held in 4 bits, for a product: it is read, and written."""
    if adapter.settings.quantization != NF4:
        return Seconds()
    size = math.prod(adapter.matrix.local_shape(device.tensor_group.size))
    return Seconds(elementwise=device.moving(packed_bytes(size) + size * device.number))


def _lengths(adapter: Adapter, device: Device) -> Seconds:
    """Of a matrix's rows, for DoRA: the matrix is read twice, and multiplied with A."""
    if not adapter.settings.dora:
        return Seconds()
    outputs, inputs = adapter.matrix.local_shape(device.tensor_group.size)
    product = device.product(outputs, inputs, adapter.num_parts * adapter.settings.rank)
    return Seconds(product, elementwise=device.moving(outputs * inputs * device.number))
