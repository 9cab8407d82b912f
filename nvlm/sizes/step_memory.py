"""Bytes that a process of each pipeline stage holds at the height of a step.

That is where most micro-batches are between their forward and their backward pass: with one chunk
a stage as many as stages follow it and one more, with several as many chunks of them as
Megatron-core's interleaved schedule runs forwards before the first backward pass, and one more.
Not counted: what kernels and messages take for a moment, libraries, and what an encoder that
trains keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.config.schema import RunConfig
from nvlm.sizes.activations import stage_activations
from nvlm.sizes.memory import MemoryBytes, feature_bytes, stage_memory


@dataclass(frozen=True)
class StepMemory:
    """Of one process."""

    kept: MemoryBytes  # through training
    # Of all micro-batches under way, with the most tiles they can have; where all processes encode
    # tiles, the features of the step's, which the first stage holds before its schedule begins.
    activations: int

    @property
    def total(self) -> int:
        return self.kept.total + self.activations


def step_memory(
    config: RunConfig,
    stage: int,
    data_parallel_size: int,
    num_tiles: int,
    layer_implementation: str = "local",
) -> StepMemory:
    """Of each process of pipeline stage `stage`.

    Args:
        num_tiles: most tiles of a micro-batch.
        layer_implementation: as it was resolved, see `layer_activations`.
    """
    train = config.train
    num_micro_batches = train.global_batch_size // (data_parallel_size * train.micro_batch_size)
    held = _chunks_under_way(config, stage, num_micro_batches)
    one = stage_activations(config, stage, num_tiles, layer_implementation)
    # Of the head only one micro-batch's: its backward pass follows at once.
    layers = (one.layers + one.projector) * held // config.parallel.virtual_pipeline
    features = 0
    if stage == 0 and config.parallel.shares_tiles:
        features = feature_bytes(config, num_micro_batches * num_tiles)
    return StepMemory(stage_memory(config, stage, data_parallel_size), layers + one.head + features)


def _chunks_under_way(config: RunConfig, stage: int, num_micro_batches: int) -> int:
    """Chunks' forward passes that wait for their backward pass at the height of a step."""
    num_stages, num_chunks = config.parallel.pipeline, config.parallel.virtual_pipeline
    following = num_stages - stage - 1
    before = following if num_chunks == 1 else 2 * following + (num_chunks - 1) * num_stages
    return min(before + 1, num_micro_batches * num_chunks)
