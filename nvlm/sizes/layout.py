"""How many decoder layers each pipeline stage has: `parallel.layout`, read or cut by cost.

A pipeline moves at the pace of its slowest stage: each further micro-batch takes as long as that
one, and what the first one takes does not depend on the cut. So `auto` makes the slowest stage as
fast as can be. The same numbers on every rank: nothing enters but the configuration.
"""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.sizes.stage_seconds import PartSeconds, part_seconds

# Decoder layers of each pipeline stage, chunk by chunk.
StageLayers = list[list[int]]


def stage_layers(config: RunConfig) -> StageLayers:
    """What `parallel.layout` comes to."""
    parallel, num_layers = config.parallel, config.model.language.num_layers
    if parallel.layout == "even":
        size = num_layers // (parallel.pipeline * parallel.virtual_pipeline)
        return [[size] * parallel.virtual_pipeline for _ in range(parallel.pipeline)]
    if parallel.layout == "auto":
        return balanced_layers(config)
    return [[row] if isinstance(row, int) else list(row) for row in parallel.layout]


def balanced_layers(config: RunConfig) -> StageLayers:
    """The layers with which the slowest stage is fastest; those of a stage about even by chunk.

    A stage's time grows with each of its layers, so that giving one after another to the stage that
    is then the fastest finds the optimum. Of equal stages the last has it: the earlier keep the
    activations of more micro-batches.
    """
    parallel, parts = config.parallel, part_seconds(config)
    num_chunks = parallel.virtual_pipeline
    layers = [[0] * num_chunks for _ in range(parallel.pipeline)]

    def with_one_more(stage: int, chunk: int) -> float:
        return chunk_seconds(config, parts, stage, chunk, layers[stage][chunk] + 1)

    def next_of(stage: int) -> tuple[float, int]:
        """The stage's time with one layer more, and the chunk that has it."""
        chunk = min(range(num_chunks), key=lambda chunk: with_one_more(stage, chunk))
        others = sum(
            chunk_seconds(config, parts, stage, other, layers[stage][other])
            for other in range(num_chunks)
            if other != chunk
        )
        return others + with_one_more(stage, chunk), chunk

    candidates = [next_of(stage) for stage in range(parallel.pipeline)]
    for _ in range(config.model.language.num_layers):
        stage = min(reversed(range(parallel.pipeline)), key=lambda stage: candidates[stage][0])
        layers[stage][candidates[stage][1]] += 1
        candidates[stage] = next_of(stage)
    return layers


def stage_seconds(config: RunConfig, layers: StageLayers) -> list[float]:
    """What each stage takes for one micro-batch, forwards and backwards."""
    parts = part_seconds(config)
    return [
        sum(
            chunk_seconds(config, parts, stage, chunk, num_layers)
            for chunk, num_layers in enumerate(chunks)
        )
        for stage, chunks in enumerate(layers)
    ]


def chunk_seconds(
    config: RunConfig, parts: PartSeconds, stage: int, chunk: int, num_layers: int
) -> float:
    """The same of one chunk that has `num_layers` of the decoder."""
    parallel = config.parallel
    wanted = config.train.recompute.language.num_layers
    num_recomputed = num_layers if wanted is None else wanted // parallel.virtual_pipeline
    seconds = num_layers * parts.layer + min(num_layers, num_recomputed) * parts.recomputed
    if (stage, chunk) == (0, 0):
        seconds += parts.encoder + parts.embedding
    if (stage, chunk) == (parallel.pipeline - 1, parallel.virtual_pipeline - 1):
        seconds += parts.head
    return seconds
