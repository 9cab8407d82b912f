"""What a process of each pipeline stage holds at the height of a step, and while it saves.

Parameters, gradients and optimizer state are counted as Megatron-core allocates them
(`nvlm.sizes.memory`); the rest is reckoned from shapes. A step's height is where most micro-batches
are between their forward and their backward pass, in the order that the schedule has.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.plan.activations import (
    backward_bytes,
    chunk_bytes,
    encoding_bytes,
    logits_bytes,
    visual_bytes,
)
from nvlm.plan.assumptions import Assumptions
from nvlm.plan.schedule import most_kept, stage_order
from nvlm.plan.work import Work
from nvlm.sizes.components.internvit import NUM_COLOUR_CHANNELS
from nvlm.sizes.memory import stage_memory
from nvlm.sizes.parameters import count_parameters, parameters_by_name

_WIDE = DTYPES["fp32"].num_bytes


@dataclass(frozen=True)
class StageBytes:
    """Of one process, in bytes.

    activations: kept for backward passes, of all micro-batches in between.
    tiles: pixels of the step's micro-batches.
    logits: with softmax and gradient; on the last stage.
    buffers: what comes and goes within a pass.
    gathered: what saving a checkpoint gathers besides parameters, gradients and optimizer.
    overhead: what libraries take, and what the allocator cannot use.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    tiles: int
    logits: int
    buffers: int
    gathered: int
    overhead: int

    @property
    def kept(self) -> int:
        """What stays between steps."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def at_step(self) -> int:
        coming = self.activations + self.tiles + self.logits + self.buffers
        return self.kept + coming + self.overhead

    @property
    def at_checkpoint(self) -> int:
        return self.kept + self.gathered + self.overhead

    @property
    def peak(self) -> int:
        return max(self.at_step, self.at_checkpoint)


def stage_bytes(
    config: RunConfig, stage: int, data_size: int, work: Work, assumptions: Assumptions
) -> StageBytes:
    """Of each process of pipeline stage `stage`, with `data_size` data-parallel ranks."""
    parallel, train = config.parallel, config.train
    is_first, is_last = stage == 0, stage == parallel.pipeline - 1
    num_micro_batches = train.global_batch_size // (data_size * train.micro_batch_size)
    kept = stage_memory(config, stage, data_size)
    most_tiles = work.most_tiles * train.micro_batch_size

    chunks: list[float] = [*chunk_bytes(config, stage)]
    if is_first:
        chunks[0] += visual_bytes(config, most_tiles)
    order = stage_order(stage, parallel.pipeline, parallel.virtual_pipeline, num_micro_batches)
    activations = most_kept(order, chunks)
    logits = logits_bytes(config) if is_last else 0
    buffers = backward_bytes(config)
    if is_first:
        buffers = max(buffers, encoding_bytes(config, most_tiles))
    tiles = 0.0
    if is_first:
        tiles = num_micro_batches * train.micro_batch_size * work.num_tiles * tile_bytes(config)
    gathered = checkpoint_gather_bytes(kept.gradients, data_size)
    coming = max(activations + tiles + logits + buffers, gathered)
    return StageBytes(
        parameters=kept.parameters,
        gradients=kept.gradients,
        optimizer=kept.optimizer,
        activations=round(activations),
        tiles=round(tiles),
        logits=logits,
        buffers=round(buffers),
        gathered=gathered,
        overhead=round(assumptions["memory_overhead"] + assumptions["fragmentation"] * coming),
    )


def tile_bytes(config: RunConfig) -> int:
    """Of a tile's pixels, a byte each."""
    return NUM_COLOUR_CHANNELS * config.model.vision.image_size**2


def checkpoint_gather_bytes(buffer_bytes: int, data_size: int) -> int:
    """Besides what stays: one fp32 buffer of the optimizer's, gathered over the data ranks.

    Megatron-core gathers a list of the ranks' shares, which its message lays side by side once
    more, from a copy of the own share (`get_parameter_state_dp_zero`).
    """
    return 0 if data_size == 1 else 2 * buffer_bytes + buffer_bytes // data_size


@dataclass(frozen=True)
class CheckpointBytes:
    """Of one checkpoint on disk."""

    weights: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer


def checkpoint_bytes(config: RunConfig) -> CheckpointBytes:
    """Weights in `train.precision`; of what trains the fp32 original and Adam's two moments."""
    named = parameters_by_name(config.model)
    count = count_parameters(named, config.stage.freeze)
    weights = count.total * DTYPES[config.train.precision].num_bytes
    return CheckpointBytes(weights, 3 * _WIDE * count.trainable)
