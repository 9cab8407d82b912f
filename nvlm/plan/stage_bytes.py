"""What a process of each pipeline stage holds at the height of a step, and at a checkpoint.

Parameters, gradients and optimizer state are counted as Megatron-core allocates them
(`nvlm.sizes.memory`); the rest is reckoned from shapes. A step's height is where most micro-batches
are between their forward and their backward pass, in the order that the schedule has.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.config.encoders.settings import NUM_COLOUR_CHANNELS
from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.plan.activations import (
    backward_bytes,
    chunk_bytes,
    encoding_bytes,
    head_bytes,
    layer_implementation,
)
from nvlm.plan.assumptions import Assumptions
from nvlm.plan.schedule import most_kept, stage_order
from nvlm.plan.teacher import divergence_bytes, teacher_weight_bytes
from nvlm.plan.work import Work
from nvlm.sizes.adapters import frozen_patterns, run_parameters_by_name
from nvlm.sizes.memory import MemoryBytes, feature_bytes, stage_memory, unpacked_bytes
from nvlm.sizes.parameters import count_parameters

_WIDE = DTYPES["fp32"].num_bytes


@dataclass(frozen=True)
class StageBytes:
    """Of one process, in bytes.

    activations: kept for backward passes, of all micro-batches in between.
    tiles: pixels of the step's micro-batches, or the features made of them before its schedule.
    logits: with softmax and gradient; on the last stage.
    buffers: what comes and goes within a pass.
    copied: what a checkpoint takes besides: nothing while it is saved; Transformer Engine's Adam
        copies both moments once while it takes them over, and matrices that are held in 4 bits are
        read in 16.
    overhead: what libraries take, and what the allocator cannot use.
    teacher: weights of the model that a run learns from (`train.distill`).
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    tiles: int
    logits: int
    buffers: int
    copied: int
    overhead: int
    teacher: int = 0

    @property
    def kept(self) -> int:
        """What stays between steps."""
        return self.parameters + self.gradients + self.optimizer + self.teacher

    @property
    def coming(self) -> int:
        """What comes and goes within a step."""
        return self.activations + self.tiles + self.logits + self.buffers

    @property
    def at_step(self) -> int:
        return self.kept + self.coming + self.overhead

    @property
    def at_checkpoint(self) -> int:
        return self.kept + self.copied + self.overhead

    @property
    def peak(self) -> int:
        return max(self.at_step, self.at_checkpoint)


def stage_bytes(
    config: RunConfig,
    stage: int,
    data_size: int,
    work: Work,
    assumptions: Assumptions,
    kept: MemoryBytes | None = None,
    teacher: RunConfig | None = None,
) -> StageBytes:
    """Of each process of pipeline stage `stage`, with `data_size` data-parallel ranks.

    Context-parallel ranks share the optimizer's state with them, and the tiles of a row.

    Args:
        kept: what `stage_memory` says, where that is known.
        teacher: the configuration of the checkpoint that `train.distill` names.
    """
    parallel, train = config.parallel, config.train
    is_first = stage == 0
    num_micro_batches = train.global_batch_size // (data_size * train.micro_batch_size)
    kept = kept or stage_memory(config, stage, data_size * parallel.context)
    most_tiles = work.most_tiles * train.micro_batch_size

    chunks = chunk_bytes(config, stage, most_tiles)
    order = stage_order(stage, parallel.pipeline, parallel.virtual_pipeline, num_micro_batches)
    activations = most_kept(order, chunks)
    logits = head_bytes(config, stage)
    if teacher is not None:
        logits += divergence_bytes(config, teacher)
    buffers = backward_bytes(config, stage)
    if is_first and not parallel.shares_tiles:
        buffers = max(buffers, encoding_bytes(config, -(-most_tiles // parallel.context)))
    num_tiles = num_micro_batches * train.micro_batch_size * work.num_tiles
    tiles = _visual_bytes(config, num_tiles, is_first)
    copied = _copied_bytes(config, kept.optimizer) + unpacked_bytes(config, stage)
    coming = max(activations + tiles + logits + buffers, copied)
    return StageBytes(
        parameters=kept.parameters,
        gradients=kept.gradients,
        optimizer=kept.optimizer,
        activations=round(activations),
        tiles=round(tiles),
        logits=logits,
        buffers=round(buffers),
        copied=copied,
        overhead=round(assumptions["memory_overhead"] + assumptions["fragmentation"] * coming),
        teacher=0 if teacher is None else teacher_weight_bytes(config, teacher),
    )


def _visual_bytes(config: RunConfig, num_tiles: float, is_first: bool) -> float:
    """Of a step with so many tiles: pixels on the first stage or, where all ranks share the tiles,
    a rank's share of them and, on the first stage, the features of all.

    While a step is trained, the pixels of the next one are on their way, to the rank that reads.
    """
    parallel = config.parallel
    pixels = num_tiles * tile_bytes(config) * (2 if config.data.num_workers else 1)
    if not parallel.shares_tiles:
        return pixels * is_first / parallel.context
    return pixels / parallel.model_parallel_size + feature_bytes(config, num_tiles) * is_first


def tile_bytes(config: RunConfig) -> int:
    """Of a tile's pixels, a byte each."""
    return NUM_COLOUR_CHANNELS * config.model.vision.image_size**2


def _copied_bytes(config: RunConfig, optimizer: int) -> int:
    """Both moments: two of the optimizer's three numbers, or all it has beside fp32 weights."""
    if layer_implementation(config) == "local":
        return 0
    return optimizer * 2 // 3


def staged_bytes(config: RunConfig, stage: StageBytes, data_size: int) -> int:
    """On the host, of a process: its copy of what it writes, of a save in the background.

    Data ranks write equal shares. An upper bound where tensor-parallel ranks hold tensors alike
    (norms, an encoder that is whole on each), which one of them writes.
    """
    # In fp32 the weights are the optimizer's originals, which a checkpoint has besides.
    is_wide = config.train.precision == "fp32"
    originals = stage.optimizer // 2 if is_wide else 0
    return stage.parameters // (data_size * config.parallel.context) + stage.optimizer + originals


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
    count = count_parameters(run_parameters_by_name(config), frozen_patterns(config))
    weights = count.total * DTYPES[config.train.precision].num_bytes
    return CheckpointBytes(weights, 3 * _WIDE * count.trainable)
