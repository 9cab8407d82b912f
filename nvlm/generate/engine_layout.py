"""The process layout of a model that answers, where nobody says one."""

from __future__ import annotations

import math

from nvlm.config.changed import changed
from nvlm.config.checks import check_world_size
from nvlm.config.schema import ModelConfig, ParallelConfig, RunConfig
from nvlm.errors import ConfigError
from nvlm.plan.layout import with_stage_layers
from nvlm.sizes.layout import stage_layers
from nvlm.sizes.memory import stage_memory

# Of a device's memory; the rest is for keys and values, activations, and what libraries take.
_SHARE_FOR_WEIGHTS = 0.85


def config_for_generation(
    config: RunConfig,
    layout: ParallelConfig | None,
    world_size: int,
    num_local: int | None = None,
    device_bytes: int = 0,
    wants_replicas: bool = False,
) -> RunConfig:
    """A model's configuration with the layout in use.

    Sequence parallelism, virtual stages and shared tiles are for training: of uneven virtual stages
    a stage has as many layers in one run, and a question has few tiles, which the first stage
    encodes. Tensor-parallel processes share experts. 8-bit products ask for other numbers of
    tokens. Batch sizes are made to fit.

    Args:
        layout: tensor and pipeline sizes; None: see `default_layout`.
        num_local, device_bytes, wants_replicas: see `default_layout`.

    Raises:
        ConfigError: the layout does not fit the model or the number of processes; or none was given
            and the model is too large for the processes' devices.
    """
    if layout is None:
        layout = default_layout(
            config, world_size, num_local or world_size, device_bytes, wants_replicas
        )
    where = f"the model at --tensor {layout.tensor} --pipeline {layout.pipeline}"
    config = changed(config, _changes(config, layout, world_size), where)
    check_world_size(config, world_size)
    return config


def _changes(config: RunConfig, layout: ParallelConfig, world_size: int) -> dict:
    stages: list[int] | str = "even"
    moe = config.model.language.moe
    if layout is config.parallel and layout.layout != "even":
        stages = [sum(chunks) for chunks in stage_layers(with_stage_layers(config))]
    return {
        "parallel": layout,
        "parallel.virtual_pipeline": 1,
        "parallel.layout": stages,
        "parallel.sequence": False,
        "parallel.context": 1,
        # Replicas answer each at its own pace: experts are shared within one.
        "parallel.expert": math.gcd(layout.tensor, moe.num_experts) if moe else 1,
        "parallel.vision": "tensor",
        "train.fp8.recipe": "none",
        "train.micro_batch_size": 1,
        "train.global_batch_size": world_size,
    }


def default_layout(
    config: RunConfig,
    world_size: int,
    num_local: int,
    device_bytes: int = 0,
    wants_replicas: bool = False,
) -> ParallelConfig:
    """Tensor and pipeline sizes; the processes that are left over are further replicas.

    1. The layout that the model was trained with, where the processes are a multiple of it.
    2. Otherwise, and where the model does not fit the devices so: as many tensor-parallel processes
       as divide the processes and all that they share (heads, key/value heads, feed-forward
       channels, rows of the vocabulary), and are on one machine.
    3. If that is not enough, the fewest pipeline stages with which it fits.

    The model fits where the weights of every stage take no more than `_SHARE_FOR_WEIGHTS` of a
    device.

    Args:
        num_local: processes on one machine, which fast links join.
        device_bytes: memory of each device; 0: not known, and taken to be enough.
        wants_replicas: for many questions: the whole model in every process comes first of all.

    Raises:
        ConfigError: it fits at no layout of so many processes.
    """
    if wants_replicas and _fits(config, ParallelConfig(), device_bytes):
        return ParallelConfig()
    own, divisor = config.parallel, _tensor_divisor(config.model)
    is_own = world_size % own.model_parallel_size == 0 and divisor % own.tensor == 0
    if is_own and _fits(config, own, device_bytes):
        return own
    layouts = []
    for pipeline in _divisors(world_size):
        if config.model.language.num_layers % pipeline == 0:
            sizes = _divisors(math.gcd(world_size // pipeline, divisor))
            tensor = max(size for size in sizes if size <= num_local)
            layouts.append(ParallelConfig(tensor=tensor, pipeline=pipeline))
    for layout in layouts:
        if _fits(config, layout, device_bytes):
            return layout
    least = min(weight_bytes(config, layout) for layout in layouts)
    raise ConfigError(
        f"the model's weights take {least / 1e9:,.1f} GB of each device with {world_size} "
        f"processes, and a device has {device_bytes / 1e9:,.1f}, of which "
        f"{_SHARE_FOR_WEIGHTS:.0%} are for weights: start more processes (torchrun "
        "--nproc-per-node), or say --tensor and --pipeline"
    )


def weight_bytes(config: RunConfig, layout: ParallelConfig) -> int:
    """Of the largest stage's processes, in `train.precision`."""
    changes = _changes(config, layout, layout.model_parallel_size)
    # Frozen: without room for gradients and optimizer.
    frozen = changed(config, {**changes, "stage.freeze": ["*"]})
    return max(stage_memory(frozen, stage, 1).parameters for stage in range(layout.pipeline))


def _fits(config: RunConfig, layout: ParallelConfig, device_bytes: int) -> bool:
    if not device_bytes:
        return True
    return weight_bytes(config, layout) <= _SHARE_FOR_WEIGHTS * device_bytes


def _tensor_divisor(model: ModelConfig) -> int:
    """What tensor-parallel sizes have to divide."""
    language = model.language
    return math.gcd(
        *model.vision.split_sizes().values(),
        *model.connector.split_sizes().values(),
        language.num_attention_heads,
        language.num_query_groups,
        model.num_cross_attention_groups,
        language.ffn_hidden_size,
        language.vocab_size,
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def layout_asked_for(tensor: int | None, pipeline: int | None) -> ParallelConfig | None:
    """Of `--tensor` and `--pipeline`; None where neither is given."""
    if tensor is None and pipeline is None:
        return None
    return ParallelConfig(tensor=tensor or 1, pipeline=pipeline or 1)
