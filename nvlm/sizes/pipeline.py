"""Which pipeline stage holds what.

The vision encoder, the projector and the embedding are on the first stage, the final norm and the
output layer on the last. Layers are dealt out in runs, which `nvlm.sizes.layout` counts: one per
stage or, with virtual stages, one per chunk in turn. 8 layers on 2 stages of 2 chunks, evenly:
stage 0 has layers 0, 1, 4 and 5.
"""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.sizes.layout import stage_layers
from nvlm.sizes.parameters import parameter_table
from nvlm.sizes.row import Parameter


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


def chunk_parameters(config: RunConfig, stage: int, chunk: int) -> dict[str, Parameter]:
    """Whole-model name -> row, of every parameter of a chunk of pipeline stage `stage`.

    An embedding that is shared with the output layer is in the first of all chunks and, where that
    is on another stage, a second time in the last, under the same name.
    """
    parallel = config.parallel
    wanted = {"its layer's"}
    if (stage, chunk) == (0, 0):
        wanted |= {"first", "first and last"}
    if (stage, chunk) == (parallel.pipeline - 1, parallel.virtual_pipeline - 1):
        wanted |= {"last", "first and last"}
    layers_here = chunk_layers(config, stage)[chunk]
    return {
        row.name(layer): row
        for row in parameter_table(config.model)
        if row.pipeline_stage in wanted
        for layer in row.layers()
        if row.pipeline_stage != "its layer's" or layer in layers_here
    }


def stage_parameters(config: RunConfig, stage: int) -> dict[str, Parameter]:
    """The same of all chunks of a stage."""
    return {
        name: row
        for chunk in range(config.parallel.virtual_pipeline)
        for name, row in chunk_parameters(config, stage, chunk).items()
    }


def is_copy(row: Parameter, stage: int) -> bool:
    """Whether what pipeline stage `stage` holds of `row` is a copy of what another one holds."""
    return row.pipeline_stage == "first and last" and stage > 0
