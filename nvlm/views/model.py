"""`nvlm model summary`: count the parameters of the model, once it has been built.

Every pipeline stage is built by Megatron-core as a run would build it, on torch's meta device, and
compared with the table of parameters (`nvlm.sizes.parameters`), which is what is counted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from rich.console import Console

from nvlm.config import RunConfig, changed
from nvlm.errors import ConfigError
from nvlm.model.nvlm_d import build_model_chunks
from nvlm.parallel.stand_in import stand_in
from nvlm.plan.layout import with_stage_layers
from nvlm.platform.meta import OnMetaDevice
from nvlm.printing import new_console, say
from nvlm.sizes.adapters import frozen_patterns, run_parameters_by_name
from nvlm.sizes.parameters import (
    COMPONENTS,
    VISION,
    ParameterCount,
    count_parameters,
    matches,
    num_zero_parameters,
)
from nvlm.sizes.pipeline import chunk_layers, is_copy, stage_parameters
from nvlm.tables import print_table


@dataclass(frozen=True)
class StageSummary:
    """What the processes of one pipeline stage hold together."""

    layers: list[list[int]]  # of the decoder, per chunk (one chunk without virtual stages)
    parameters: dict[str, ParameterCount]  # component -> count
    total: ParameterCount
    # Of them, copies of what another stage holds: of an embedding that is shared with the output
    # layer, on the last stage, and of an encoder that every process has.
    num_copied: int
    num_per_process: int


@dataclass(frozen=True)
class ModelSummary:
    """Counts of the whole model; a shared embedding counts once, however many stages hold it."""

    parameters: dict[str, ParameterCount]  # component -> count
    total: ParameterCount
    # InternViT's heads beyond the real ones: stored, always zero. Part of the counts above.
    num_zero: int
    stages: list[StageSummary]


def summarize(config: RunConfig) -> ModelSummary:
    """Build every pipeline stage of `config` on the meta device, and count.

    Raises:
        ConfigError: a pattern of `stage.freeze` matches no parameter.
    """
    # Transformer Engine's modules have the same parameters and need a GPU to be built.
    config = with_stage_layers(changed(config, {"model.layer_implementation": "local"}))
    named, frozen = run_parameters_by_name(config), frozen_patterns(config)
    freeze = config.stage.freeze
    unmatched = sorted({p for p in freeze if not any(matches(name, p) for name in named)})
    if unmatched:
        raise ConfigError(
            f"stage.freeze: {', '.join(map(repr, unmatched))} matches no parameter; "
            f"the model has {', '.join(f'{name}.*' for name in COMPONENTS)}"
        )
    return ModelSummary(
        parameters={name: count_parameters(named, frozen, name) for name in COMPONENTS},
        total=count_parameters(named, frozen),
        num_zero=num_zero_parameters(config.model),
        stages=[_summarize_stage(config, stage) for stage in range(config.parallel.pipeline)],
    )


def _summarize_stage(config: RunConfig, stage: int) -> StageSummary:
    with stand_in(config, stage) as parallel, OnMetaDevice():
        # Whoever builds a stage has it compared, parameter by parameter, with what is counted here.
        for chunk in build_model_chunks(config, parallel):
            assert all(parameter.is_meta for parameter in chunk.parameters()), "it takes memory"
    held, frozen = stage_parameters(config, stage), frozen_patterns(config)
    tensor_size = config.parallel.tensor
    return StageSummary(
        layers=chunk_layers(config, stage),
        parameters={name: count_parameters(held, frozen, name) for name in COMPONENTS},
        total=count_parameters(held, frozen),
        num_copied=sum(row.size for row in held.values() if is_copy(row, stage)),
        num_per_process=sum(math.prod(row.local_shape(tensor_size)) for row in held.values()),
    )


# ----------------------------------------------------------------------------------------- printing


def print_summary(config: RunConfig, as_json: bool = False) -> None:
    """Print `summarize(config)` as tables, or as one JSON object.

    Raises:
        ConfigError: see `summarize`.
    """
    summary = summarize(config)
    if as_json:
        say(json.dumps(_as_json(summary, config), indent=2))
        return
    console = new_console(highlight=False)
    _print_components(console, summary, config)
    _print_stages(console, summary, config)


def _print_components(console: Console, summary: ModelSummary, config: RunConfig) -> None:
    counts = {**summary.parameters, "total": summary.total}
    rows = [
        [name, *map(_number, (count.total, count.trainable, count.frozen))]
        for name, count in counts.items()
    ]
    if summary.num_zero:
        without = _number(summary.total.total - summary.num_zero)
        rows.append(["  of them zero heads of the vision model", _number(summary.num_zero), "", ""])
        rows.append(["  without these", without, "", ""])
    title = f"{config.model.name}, stage {config.stage.name}"
    print_table(console, title, ["component", "parameters", "trainable", "frozen"], rows)


def _print_stages(console: Console, summary: ModelSummary, config: RunConfig) -> None:
    layout = config.parallel
    title = f"pipeline stages (tensor {layout.tensor} x pipeline {layout.pipeline}"
    title += f", {layout.virtual_pipeline} chunks each)" if layout.virtual_pipeline > 1 else ")"
    headings = ["stage and its\ndecoder layers", "vision", "projection", "language", "total"]
    headings += ["trainable", "per process"]
    rows = []
    for number, stage in enumerate(summary.stages):
        counts = [stage.parameters[name].total for name in COMPONENTS]
        counts += [stage.total.total, stage.total.trainable, stage.num_per_process]
        layers = ", ".join(f"{chunk[0]}-{chunk[-1]}" if chunk else "none" for chunk in stage.layers)
        rows.append([f"{number}: {layers}", *map(_number, counts)])
    print_table(console, title, headings, rows)
    num_copied = sum(stage.num_copied for stage in summary.stages)
    if layout.shares_tiles:
        vision = summary.parameters[VISION].total
        num_copied -= vision * (layout.pipeline - 1)
        console.print(f"Every process has the whole vision model ({vision:,}), counted above once.")
    if num_copied:
        console.print(
            f"The last stage's output layer is a copy of the embedding ({num_copied:,}), counted "
            "here and not above."
        )


def _as_json(summary: ModelSummary, config: RunConfig) -> dict:
    layout = config.parallel
    return {
        "model": config.model.name,
        "training_stage": config.stage.name,
        "components": {name: _count(count) for name, count in summary.parameters.items()},
        "total": {
            **_count(summary.total),
            "zero_heads": summary.num_zero,
            "without_zero_heads": summary.total.total - summary.num_zero,
        },
        "layout": {
            "tensor": layout.tensor,
            "pipeline": layout.pipeline,
            "virtual_pipeline": layout.virtual_pipeline,
            "vision": layout.vision,
        },
        "pipeline_stages": [
            {
                "decoder_layers": stage.layers,
                "components": {name: _count(count) for name, count in stage.parameters.items()},
                **_count(stage.total),
                "copied": stage.num_copied,
                "per_process": stage.num_per_process,
            }
            for stage in summary.stages
        ],
    }


def _count(count: ParameterCount) -> dict[str, int]:
    return {"parameters": count.total, "trainable": count.trainable, "frozen": count.frozen}


def _number(value: int) -> str:
    return f"{value:,}"
