"""Bytes that a process keeps through training, as Megatron-core's data parallelism allocates them.

What trains lies in one buffer per chunk of the model, and its fp32 gradients in another as large;
the distributed optimizer keeps a data-parallel rank's share of the state. What is frozen keeps
tensors of its own. Activations, and what libraries take, are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nvlm.config.adapters import NF4_BLOCK
from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.rows import Parameter
from nvlm.sizes.adapters import frozen_patterns, quantized
from nvlm.sizes.parameters import is_frozen
from nvlm.sizes.pipeline import chunk_parameters, stage_parameters

_WIDE = DTYPES["fp32"].num_bytes
# Adam's two moments in fp32 and, beside bf16 parameters, their fp32 original.
_OPTIMIZER_BYTES = {"fp32": 8, "bf16": 12}

# In numbers: where a tensor begins in its buffer, and a bucket's end with one data-parallel rank.
_TENSOR_ALIGNMENT, _BUCKET_ALIGNMENT = 64, 128


@dataclass(frozen=True)
class MemoryBytes:
    """Of one process."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer

    def __add__(self, other: MemoryBytes) -> MemoryBytes:
        return MemoryBytes(
            self.parameters + other.parameters,
            self.gradients + other.gradients,
            self.optimizer + other.optimizer,
        )


def stage_memory(config: RunConfig, stage: int, data_parallel_size: int) -> MemoryBytes:
    """Of each process of pipeline stage `stage`; of their optimizer states the largest."""
    total = MemoryBytes(0, 0, 0)
    for chunk in range(config.parallel.virtual_pipeline):
        total += _chunk_memory(config, stage, chunk, data_parallel_size)
    return total


def feature_bytes(config: RunConfig, num_tiles: float) -> int:
    """Of so many tiles encoded beforehand, on each process of the first stage: as the projector
    reads them, for the length of a step (`parallel.vision: tile_parallel`)."""
    vision = config.model.vision
    numbers = num_tiles * vision.num_patches * vision.feature_size
    return round(numbers * DTYPES[config.train.precision].num_bytes)


def packed_names(config: RunConfig) -> set[str]:
    """Whole-model names of the matrices that are held in 4 bits."""
    return {f"{adapter.module}.weight" for adapter in quantized(config)}


def packed_bytes(size: int) -> int:
    """Of so many numbers in NF4: half a byte each, and for each block a scale in fp32."""
    return size // 2 + size // NF4_BLOCK * _WIDE


def unpacked_bytes(config: RunConfig, stage: int) -> int:
    """What the matrices that are held in 4 bits take more until they are packed: while they are
    read or drawn, on each process of pipeline stage `stage`."""
    packed, width = packed_names(config), DTYPES[config.train.precision].num_bytes
    sizes = [
        math.prod(row.local_shape(config.parallel.tensor))
        for name, row in (stage_parameters(config, stage) if packed else {}).items()
        if name in packed
    ]
    return sum(size * width - packed_bytes(size) for size in sizes)


def _chunk_memory(
    config: RunConfig, stage: int, chunk: int, data_parallel_size: int
) -> MemoryBytes:
    precision, tensor_size = config.train.precision, config.parallel.tensor
    width, packed = DTYPES[precision].num_bytes, packed_names(config)
    frozen_bytes, trained, frozen = 0, [], frozen_patterns(config)
    for name, row in chunk_parameters(config, stage, chunk).items():
        if is_frozen(name, frozen):
            size = math.prod(row.local_shape(tensor_size))
            frozen_bytes += packed_bytes(size) if name in packed else size * width
        else:
            trained.append(row)
    total = MemoryBytes(frozen_bytes, 0, 0)
    # Experts have buffers of their own, and their state other ranks to share it.
    of_experts = tensor_size * data_parallel_size // config.parallel.expert
    for rows, num_ranks in (
        ([row for row in trained if row.num_experts is None], data_parallel_size),
        ([row for row in trained if row.num_experts is not None], max(1, of_experts)),
    ):
        num_trained = sum(math.prod(row.local_shape(tensor_size)) for row in rows)
        buffer = sum(
            _bucket_size(bucket, tensor_size, num_ranks)
            for bucket in _buckets(rows, config.parallel.pipeline)
        )
        # A rank's share of the buffer has gaps between tensors, for which no state is kept.
        num_updated = min(num_trained, buffer // num_ranks)
        total += MemoryBytes(
            parameters=buffer * width,
            gradients=buffer * _WIDE,
            optimizer=num_updated * _OPTIMIZER_BYTES[precision],
        )
    return total


def _buckets(rows: Iterable[Parameter], num_stages: int) -> Iterator[list[Parameter]]:
    """One, but that a matrix which two stages hold has its own, and splits the rest in two."""
    bucket: list[Parameter] = []
    for row in rows:
        if row.pipeline_stage == "first and last" and num_stages > 1:
            yield from ([bucket] if bucket else [])
            yield [row]
            bucket = []
        else:
            bucket.append(row)
    yield from ([bucket] if bucket else [])


def _bucket_size(rows: Iterable[Parameter], tensor_size: int, data_parallel_size: int) -> int:
    """Numbers in a bucket, gaps counted. The order of its tensors does not matter."""
    size = sum(
        _round_up(math.prod(row.local_shape(tensor_size)), _TENSOR_ALIGNMENT) for row in rows
    )
    return _round_up(size, math.lcm(data_parallel_size, _BUCKET_ALIGNMENT))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
