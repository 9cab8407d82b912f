"""Which pipeline stage holds what.

The vision encoder, the projector and the embedding are on the first stage, the final norm and the
output layer on the last. With `parallel.vision: tile_parallel` each process of every stage has all
of the encoder. Layers are dealt out in runs, which `nvlm.sizes.layout` counts: one per stage or,
with virtual stages, one per chunk in turn. 8 layers on 2 stages of 2 chunks, evenly: stage 0 has
layers 0, 1, 4 and 5.
"""

from __future__ import annotations

from dataclasses import replace

from nvlm.config.schema import RunConfig
from nvlm.rows import Parameter, Place
from nvlm.sizes.adapters import run_parameter_table
from nvlm.sizes.layout import stage_layers
from nvlm.sizes.parameters import VISION


def chunk_layers(config: RunConfig, stage: int) -> list[list[int]]:
    """The decoder's layers of pipeline stage `stage`, chunk by chunk."""
    counts, start, found = stage_layers(config), 0, []
    for chunk in range(config.parallel.virtual_pipeline):
        for other in range(config.parallel.pipeline):
            size = counts[other][chunk]
            if other == stage:
                found.append(list(range(start, start + size)))
            start += size
    return found


def placed_parameters(config: RunConfig) -> list[Parameter]:
    """The table of the run's parameters, with the encoder where `parallel.vision` has it."""
    table = run_parameter_table(config)
    if not config.parallel.shares_tiles:
        return table
    return [
        replace(row, split_axis=None, pipeline_stage="every") if row.component == VISION else row
        for row in table
    ]


def chunk_parameters(
    config: RunConfig, stage: int, chunk: int, expert_rank: int = 0
) -> dict[str, Parameter]:
    """Whole-model name -> row, of every parameter of a chunk of pipeline stage `stage`.

    An embedding that is shared with the output layer is in the first of all chunks and, where that
    is on another stage, a second time in the last, under the same name. Of experts, which
    `parallel.expert` shares in runs, those of `expert_rank`.
    """
    parallel = config.parallel
    wanted = {"its layer's"}
    if chunk == 0:
        wanted |= {"every"}
    if (stage, chunk) == (0, 0):
        wanted |= {"first", "first and last"}
    if (stage, chunk) == (parallel.pipeline - 1, parallel.virtual_pipeline - 1):
        wanted |= {"last", "first and last"}
    layers_here = chunk_layers(config, stage)[chunk]
    return {
        row.name(place): row
        for row in placed_parameters(config)
        if row.pipeline_stage in wanted
        for place in row.places()
        if row.pipeline_stage != "its layer's" or row.layer_of(place) in layers_here
        if place.expert is None or _owner(row, place, parallel.expert) == expert_rank
    }


def _owner(row: Parameter, place: Place, expert_size: int) -> int:
    """Which of the expert-parallel ranks has the expert of `place`."""
    assert row.num_experts is not None and place.expert is not None
    return place.expert // (row.num_experts // expert_size)


def stage_parameters(config: RunConfig, stage: int, expert_rank: int = 0) -> dict[str, Parameter]:
    """The same of all chunks of a stage."""
    return {
        name: row
        for chunk in range(config.parallel.virtual_pipeline)
        for name, row in chunk_parameters(config, stage, chunk, expert_rank).items()
    }


def is_copy(row: Parameter, stage: int) -> bool:
    """Whether what pipeline stage `stage` holds of `row` is a copy of what another one holds."""
    return row.pipeline_stage in ("first and last", "every") and stage > 0
