"""Other layouts of a run on the same GPUs: those that are legal and fit, the fastest first.

The global batch stays, and with it the training. Varied are tensor, context (of long rows),
pipeline and virtual sizes, where tiles are encoded, how layers are cut, the micro-batch, and how
many layers are recomputed: as few as fit. The fastest by their slowest stage alone are then
planned, schedule and all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from nvlm.config.checks import check_world_size, contradictions
from nvlm.config.schema import ModuleRecomputeConfig, ParallelConfig, RunConfig
from nvlm.errors import ConfigError
from nvlm.plan.assumptions import Assumptions
from nvlm.plan.estimate import Plan, least_seconds, make_plan
from nvlm.plan.layout import with_stage_layers
from nvlm.plan.stage_bytes import stage_bytes
from nvlm.plan.work import Work
from nvlm.sizes.memory import MemoryBytes, stage_memory

_MICRO_BATCHES = (1, 2, 4, 8)
_MOST_STAGES, _MOST_CHUNKS = 16, 8
# What is recomputed, of which share of a stage's layers: tried in this order.
Recomputed = tuple[Literal["none", "selective", "full"], float]
_RECOMPUTED: tuple[Recomputed, ...] = (("none", 0), ("selective", 1), ("full", 0.5), ("full", 1))
_NUM_PLANNED = 20
# Of a row, on a context-parallel rank: with fewer, messages take longer than attention.
_FEWEST_TOKENS = 8192


@dataclass(frozen=True)
class Found:
    """What a search found."""

    plans: list[Plan]  # the fastest first
    num_fitting: int
    num_legal: int  # layouts with their micro-batch, recomputation not counted
    least_bytes: int  # the smallest peak of all


def search(
    config: RunConfig,
    num_gpus: int,
    assumptions: Assumptions,
    work: Work,
    teacher: RunConfig | None = None,
) -> Found:
    """Try every legal layout, and plan the best.

    Args:
        teacher: see `make_plan`.

    Raises:
        ConfigError: none is legal on so many GPUs.
    """
    fitting: list[tuple[float, RunConfig]] = []
    num_legal = least = 0
    per_node = int(assumptions["gpus_per_node"])
    for parallel in _layouts(num_gpus, per_node, config.stage.sequence_length):
        kept: list[MemoryBytes] = []
        for micro_batch in _MICRO_BATCHES:
            candidate = _with(config, parallel, micro_batch)
            if not _is_legal(candidate, num_gpus, teacher):
                continue
            num_legal += 1
            fixed = with_stage_layers(candidate)
            data_size = num_gpus // parallel.model_parallel_size
            kept = kept or _kept(fixed, data_size * parallel.context)
            recomputed, peak = _least_recomputed(fixed, data_size, assumptions, work, kept, teacher)
            least = min(least or peak, peak)
            if recomputed is None:
                break  # a larger micro-batch takes more
            bound = least_seconds(_recomputing(fixed, recomputed), num_gpus, assumptions, work)
            fitting.append((bound, _recomputing(candidate, recomputed)))
    if not num_legal:
        raise ConfigError(
            f"--search: no layout of {num_gpus} GPUs divides the model and "
            f"train.global_batch_size {config.train.global_batch_size}"
        )
    fitting.sort(key=lambda one: one[0])
    plans = [
        make_plan(candidate, num_gpus, assumptions, work, teacher)
        for _, candidate in fitting[:_NUM_PLANNED]
    ]
    plans.sort(key=lambda plan: plan.step_seconds)
    return Found(plans, len(fitting), num_legal, least)


def changes_of(plan: Plan, config: RunConfig) -> list[str]:
    """The overrides that make `config` the configuration of `plan`."""
    found, before = _settings(plan.config), _settings(config)
    return [f"{key}={value}" for key, value in found.items() if before[key] != value]


def _settings(config: RunConfig) -> dict[str, str]:
    recompute = config.train.recompute.language
    values: dict[str, Any] = {
        **{f"parallel.{name}": value for name, value in config.parallel.model_dump().items()},
        "train.micro_batch_size": config.train.micro_batch_size,
        "train.recompute.language.granularity": recompute.granularity,
        "train.recompute.language.num_layers": recompute.num_layers,
    }
    words = {True: "true", False: "false", None: "null"}
    return {
        key: words[value] if isinstance(value, bool) or value is None else str(value)
        for key, value in values.items()
    }


def _layouts(num_gpus: int, per_node: int, sequence_length: int) -> Iterator[ParallelConfig]:
    """Legal for a model or not."""
    most_parts = max(1, sequence_length // _FEWEST_TOKENS)
    for tensor, context in product(_divisors(num_gpus, per_node), _divisors(num_gpus, most_parts)):
        if num_gpus % (tensor * context):
            continue
        for pipeline in _divisors(num_gpus // (tensor * context), _MOST_STAGES):
            cuts: list[tuple[int, Literal["even", "auto"]]] = [(1, "even")]
            if pipeline > 1:
                cuts.extend((chunks, "even") for chunks in range(2, _MOST_CHUNKS + 1))
                cuts.append((1, "auto"))
            for virtual, layout in cuts:
                for vision in ("tensor", "tile_parallel"):
                    yield ParallelConfig(
                        tensor=tensor,
                        sequence=tensor > 1,
                        context=context,
                        pipeline=pipeline,
                        virtual_pipeline=virtual,
                        layout=layout,
                        vision=vision,  # type: ignore[arg-type]
                    )


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _with(config: RunConfig, parallel: ParallelConfig, micro_batch: int) -> RunConfig:
    """Not validated: each value is of its type, and `_is_legal` looks at the rules between them."""
    language = ModuleRecomputeConfig()
    recompute = config.train.recompute.model_copy(update={"language": language})
    changes = {"micro_batch_size": micro_batch, "recompute": recompute}
    train = config.train.model_copy(update=changes)
    return config.model_copy(update={"parallel": parallel, "train": train})


def _is_legal(config: RunConfig, num_gpus: int, teacher: RunConfig | None) -> bool:
    try:
        check_world_size(config, num_gpus)
    except ConfigError:
        return False
    configs = [config]
    if teacher is not None:  # it is split as the run is
        configs.append(config.model_copy(update={"model": teacher.model}))
    return all(next(contradictions(one), None) is None for one in configs)


def _kept(config: RunConfig, num_copies: int) -> list[MemoryBytes]:
    """What stays between steps, by stage; the same for every micro-batch and recomputation."""
    last = config.parallel.pipeline - 1
    patterns = [*config.stage.freeze, *config.stage.adapters]
    every_layer_alike = not any(char.isdigit() for text in patterns for char in text)
    kept: list[MemoryBytes] = []
    for stage in range(last + 1):
        # Stages between the first and the last with as many layers hold as much.
        if 1 < stage < last and config.parallel.layout == "even" and every_layer_alike:
            kept.append(kept[1])
        else:
            kept.append(stage_memory(config, stage, num_copies))
    return kept


def _least_recomputed(
    config: RunConfig,
    data_size: int,
    assumptions: Assumptions,
    work: Work,
    kept: list[MemoryBytes],
    teacher: RunConfig | None,
) -> tuple[Recomputed | None, int]:
    """The least recomputation that fits, None where all is not enough; and the peak with it."""
    peak = max(one.total for one in kept)
    if peak > assumptions["memory_bytes"]:
        return None, peak
    for recomputed in _RECOMPUTED:
        candidate = _recomputing(config, recomputed)
        peak = max(
            stage_bytes(candidate, stage, data_size, work, assumptions, of, teacher).peak
            for stage, of in enumerate(kept)
        )
        if peak <= assumptions["memory_bytes"]:
            return recomputed, peak
    return None, peak


def _recomputing(config: RunConfig, recomputed: Recomputed) -> RunConfig:
    """With so much of each stage's layers recomputed."""
    granularity, share = recomputed
    num_layers = None
    if 0 < share < 1:
        chunks = config.parallel.virtual_pipeline
        of_chunk = config.model.language.num_layers // (config.parallel.pipeline * chunks)
        num_layers = chunks * max(1, int(of_chunk * share))
    language = ModuleRecomputeConfig(granularity=granularity, num_layers=num_layers)
    recompute = config.train.recompute.model_copy(update={"language": language})
    train = config.train.model_copy(update={"recompute": recompute})
    return config.model_copy(update={"train": train})
