"""`nvlm model summary`: count the parameters of the model itself, built without memory for it.

Every pipeline stage is built by Megatron-core as a run would build it, on torch's meta device.
`nvlm.sizes.parameters` counts the same from the configuration alone; a test holds them together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from megatron.core.transformer.module import MegatronModule
from rich.console import Console

from nvlm.config import RunConfig, changed
from nvlm.errors import ConfigError
from nvlm.model.nvlm_d import build_model_chunks
from nvlm.model.parts.names import named_parameters
from nvlm.parallel.groups import Parallel
from nvlm.parallel.stand_in import stand_in
from nvlm.platform.meta import OnMetaDevice
from nvlm.printing import new_console, say
from nvlm.sizes.parameters import COMPONENTS, ParameterCount, num_padding_parameters
from nvlm.tables import print_table


@dataclass(frozen=True)
class StageSummary:
    """What the processes of one pipeline stage hold together."""

    layers: list[list[int]]  # of the decoder, per chunk (one chunk without virtual stages)
    parameters: dict[str, ParameterCount]  # component -> count
    total: ParameterCount
    # Of them, the last stage's copy of an embedding that is shared with the output layer.
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
    config = changed(config, {"model.layer_implementation": "local"})
    unmatched = set(config.stage.freeze)
    stages: list[StageSummary] = []
    components: dict[str, ParameterCount] = dict.fromkeys(COMPONENTS, ParameterCount(0, 0))
    for pipeline_rank in range(config.parallel.pipeline):
        with stand_in(config, pipeline_rank) as parallel, OnMetaDevice():
            chunks = build_model_chunks(config, parallel)
            tensors = _parameter_counts(chunks, config, parallel)
        unmatched -= {p for p in unmatched if any(fnmatchcase(t.name, p) for t in tensors)}
        stages.append(_summarize_stage(chunks, tensors))
        for component in COMPONENTS:
            owned = [t.count for t in tensors if t.component == component and not t.is_copy]
            components[component] = _sum([components[component], *owned])
    if unmatched:
        raise ConfigError(
            f"stage.freeze: {', '.join(map(repr, sorted(unmatched)))} matches no parameter; "
            f"the model has {', '.join(f'{name}.*' for name in COMPONENTS)}"
        )
    num_zero = num_padding_parameters(config.model.vision)
    return ModelSummary(components, _sum(components.values()), num_zero, stages)


@dataclass(frozen=True)
class _Tensor:
    """One parameter tensor of a stage, whole."""

    name: str
    count: ParameterCount
    num_per_process: int
    is_copy: bool

    @property
    def component(self) -> str:
        return self.name.partition(".")[0]


def _parameter_counts(
    chunks: Sequence[MegatronModule], config: RunConfig, parallel: Parallel
) -> list[_Tensor]:
    tensors = []
    for name, parameter in named_parameters(chunks):
        assert parameter.is_meta, f"{name} takes memory"
        is_split = getattr(parameter, "tensor_model_parallel", False)
        size = parameter.numel() * (parallel.tensor_size if is_split else 1)
        is_frozen = any(fnmatchcase(name, pattern) for pattern in config.stage.freeze)
        count = ParameterCount(size, 0 if is_frozen else size)
        # Megatron-core's mark of the copy on the last pipeline stage.
        is_copy = getattr(parameter, "shared", False)
        tensors.append(_Tensor(name, count, parameter.numel(), is_copy))
    return tensors


def _summarize_stage(chunks: Sequence, tensors: list[_Tensor]) -> StageSummary:
    layers = [
        [layer.layer_number - 1 for layer in chunk.language_model.decoder.layers]
        for chunk in chunks
    ]
    parameters = {
        component: _sum(t.count for t in tensors if t.component == component)
        for component in COMPONENTS
    }
    return StageSummary(
        layers=layers,
        parameters=parameters,
        total=_sum(parameters.values()),
        num_copied=sum(t.count.total for t in tensors if t.is_copy),
        num_per_process=sum(t.num_per_process for t in tensors),
    )


def _sum(counts) -> ParameterCount:
    counts = list(counts)
    return ParameterCount(sum(c.total for c in counts), sum(c.trainable for c in counts))


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
        layers = ", ".join(f"{chunk[0]}-{chunk[-1]}" for chunk in stage.layers)
        rows.append([f"{number}: {layers}", *map(_number, counts)])
    print_table(console, title, headings, rows)
    if num_copied := sum(stage.num_copied for stage in summary.stages):
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
