"""How many decoder layers each pipeline stage has: `parallel.layout`."""

from __future__ import annotations

from nvlm.config.schema import RunConfig

# Decoder layers of each pipeline stage, chunk by chunk.
StageLayers = list[list[int]]


def stage_layers(config: RunConfig) -> StageLayers:
    """What `parallel.layout` comes to, once `nvlm.plan.layout.with_stage_layers` has cut `auto`."""
    parallel, num_layers = config.parallel, config.model.language.num_layers
    assert parallel.layout != "auto", "with_stage_layers was not called"
    if parallel.layout == "even":
        size = num_layers // (parallel.pipeline * parallel.virtual_pipeline)
        return [[size] * parallel.virtual_pipeline for _ in range(parallel.pipeline)]
    return [[row] if isinstance(row, int) else list(row) for row in parallel.layout]
