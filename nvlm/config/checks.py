"""Rules across sections, checked before any process starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nvlm.config.adapter_checks import adapter_problems
from nvlm.config.context_checks import context_problems
from nvlm.config.distillation_checks import distillation_problems
from nvlm.config.expert_checks import (
    expert_misfits,
    expert_problems,
    expert_training_problems,
)
from nvlm.config.model_checks import model_problems, not_multiple
from nvlm.config.recompute_checks import freezing_vision, recompute_problems
from nvlm.config.schema import ModelConfig, ParallelConfig, RunConfig, SourceConfig
from nvlm.config.validation_checks import checkpoint_problems, validation_problems
from nvlm.errors import ConfigError

# With Qwen2's tokenizer: `<|im_start|>user\n`, `<Image>`, `</Image>\n`, `<|im_end|>\n`,
# `<|im_start|>assistant\n` and one token of question and answer each: the least that stands around
# an image. Tokens that are not merged, at one end of an image or the other, are one more.
NUM_TOKENS_AROUND_IMAGE = {"block": 17, "merged": 16, "separate": 17}


def num_tokens_around_image(config: RunConfig) -> int:
    boundary = config.stage.image_boundary
    if config.model.fusion != "cross_attention":
        return NUM_TOKENS_AROUND_IMAGE[boundary]
    # `<Image>` is by itself whatever the boundary.
    return NUM_TOKENS_AROUND_IMAGE["merged"] + (2 if boundary == "block" else 1)


def check_config(
    config: RunConfig, where: str = "configuration", world_size: int | None = None
) -> None:
    """Raise `ConfigError` with every contradiction between sections.

    Args:
        where: the file, as messages name it.
        world_size: the number of processes; where it does not fit, that is one more problem. None:
            not looked at.
    """
    problems = [f"{where}: {problem}" for problem in contradictions(config)]
    if world_size is not None:
        problems += world_size_problems(config, world_size)
    if problems:
        raise ConfigError(*problems)


def world_size_problems(config: RunConfig, world_size: int) -> list[str]:
    """Why `world_size` processes do not fit, of a configuration that may contradict itself."""
    # Where no micro-batches fill the batch, this has been said.
    problems = list(expert_training_problems(config))
    if config.train.global_batch_size % config.train.micro_batch_size:
        return [*problems, *_layout_misfits(config, world_size)]
    return [*problems, *_misfits(config, world_size)]


def model_differences(ours: ModelConfig, theirs: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """Keys of what makes the shapes of weights, with both values where they differ."""
    for part in ("vision", "connector", "language"):
        sizes, others = getattr(ours, part).model_dump(), getattr(theirs, part).model_dump()
        yield from _differing(sizes, others, f"model.{part}")
    for key in ("fusion", "cross_attention"):
        if getattr(ours, key) != getattr(theirs, key):
            yield f"model.{key}", getattr(ours, key), getattr(theirs, key)


def _differing(ours: dict, theirs: dict, section: str) -> Iterator[tuple[str, Any, Any]]:
    if ours.get("kind") != theirs.get("kind"):
        yield f"{section}.kind", ours["kind"], theirs["kind"]
        return
    for key, value in ours.items():
        other = theirs[key]
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differing(value, other, f"{section}.{key}")
        elif key == "encoders" and len(value) == len(other):
            for number, (one, another) in enumerate(zip(value, other, strict=True)):
                yield from _differing(one, another, f"{section}.{key}.{number}")
        # How random weights were drawn, or what was added to the loss, does not matter once there
        # are weights.
        elif value != other and not key.endswith(("init_std", "scale_init", "_loss")):
            yield f"{section}.{key}", value, other


def check_world_size(config: RunConfig, world_size: int) -> int:
    """The data-parallel size that `world_size` processes leave.

    Raises:
        ConfigError: the processes do not fit the layout or the batch does not fit them.
    """
    if problems := _misfits(config, world_size):
        raise ConfigError(*problems)
    return world_size // config.parallel.model_parallel_size


def contradictions(config: RunConfig) -> Iterator[str]:
    """Every rule between keys that `config` breaks, each in one line."""
    yield from model_problems(config)
    yield from expert_problems(config)
    yield from adapter_problems(config)
    yield from _tile_parallel_problems(config)
    yield from _pipeline_problems(config)
    yield from _fp8_problems(config)
    yield from _sequence_parallel_problems(config)
    yield from context_problems(config)
    yield from distillation_problems(config)
    yield from recompute_problems(config)
    yield from _tile_problems(config)
    yield from _length_problems(config)
    yield from _train_problems(config)
    yield from checkpoint_problems(config)
    yield from validation_problems(config)


def _misfits(config: RunConfig, world_size: int) -> list[str]:
    """Why `world_size` processes do not fit; what the batch needs follows from the layout."""
    return list(_layout_misfits(config, world_size)) or list(_batch_misfits(config, world_size))


def _layout_misfits(config: RunConfig, world_size: int) -> Iterator[str]:
    parallel = config.parallel
    model_parallel = parallel.model_parallel_size
    if world_size % model_parallel:
        yield (
            f"{world_size} processes do not fit {_product(parallel)} = {model_parallel}: start a "
            "multiple of "
            f"{model_parallel} processes (torchrun --nproc-per-node) or change parallel.*"
        )
    else:
        yield from expert_misfits(parallel, world_size)


def _product(parallel: ParallelConfig) -> str:
    context = f"parallel.context {parallel.context} x " if parallel.context > 1 else ""
    return f"parallel.tensor {parallel.tensor} x {context}parallel.pipeline {parallel.pipeline}"


def _batch_misfits(config: RunConfig, world_size: int) -> Iterator[str]:
    parallel, train = config.parallel, config.train
    data_parallel = world_size // parallel.model_parallel_size
    per_step = data_parallel * train.micro_batch_size
    if train.global_batch_size % per_step:
        yield (
            f"train.global_batch_size {train.global_batch_size} is not a multiple of "
            f"data-parallel size {data_parallel} x train.micro_batch_size "
            f"{train.micro_batch_size} = {per_step}"
        )
        return
    # Chunks take turns on as many micro-batches as there are pipeline stages.
    num_micro_batches = train.global_batch_size // per_step
    if parallel.virtual_pipeline > 1 and num_micro_batches % parallel.pipeline:
        yield (
            f"parallel.virtual_pipeline {parallel.virtual_pipeline} needs micro-batches per "
            f"step and data rank in multiples of parallel.pipeline {parallel.pipeline}, and there "
            f"are {num_micro_batches}: make train.global_batch_size {train.global_batch_size} a "
            f"multiple of {per_step * parallel.pipeline}"
        )


def _fp8_problems(config: RunConfig) -> Iterator[str]:
    """What Transformer Engine's 8-bit products ask, or Megatron-core of them."""
    recipe, train, parallel = config.train.fp8.recipe, config.train, config.parallel
    if recipe == "none":
        return
    key, language = f"train.fp8.recipe {recipe}", config.model.language
    if train.precision != "bf16":
        yield f"{key} needs train.precision bf16, which is {train.precision}"
    if config.model.layer_implementation == "local":
        yield f"{key} needs Transformer Engine: model.layer_implementation is local"
    if recipe == "delayed" and train.recompute.language.granularity == "selective":
        yield (
            f"{key} does not go with train.recompute.language.granularity selective: norms that are"
            " computed again would move the factors twice; use full or none"
        )
    queries = language.num_attention_heads * language.head_dim
    keys_values = 2 * language.num_query_groups * language.head_dim
    tokens = train.micro_batch_size * config.stage.sequence_length
    local_tokens = tokens // parallel.tensor if parallel.sequence else tokens
    # Blocks are of 128 numbers; only what tensor ranks gather in 8 bits has to be whole ones.
    of_gathered = 128 if recipe == "blockwise" and parallel.sequence else 16
    for what, size, multiple in (
        ("model.language.hidden_size", language.hidden_size, of_gathered),
        ("queries, keys and values of a process", (queries + keys_values) // parallel.tensor, 16),
        ("attention's output of a process", queries // parallel.tensor, 16),
        ("feed-forward channels of a process", language.ffn_hidden_size // parallel.tensor, 16),
        ("tokens of a micro-batch on a process", local_tokens, of_gathered),
    ):
        if size % multiple:
            yield f"{key} needs sizes that {multiple} divides: {what} {size}"


def _tile_parallel_problems(config: RunConfig) -> Iterator[str]:
    if config.parallel.shares_tiles and freezing_vision(config) is None:
        yield (
            "parallel.vision tile_parallel needs a frozen vision model, and stage.freeze "
            f"{config.stage.freeze} or stage.adapters let it train: features are computed before "
            "the step's forward passes, and no gradient comes back to the processes that encode; "
            "add 'vision_model.*' to stage.freeze and no adapter, or use parallel.vision tensor"
        )


def _pipeline_problems(config: RunConfig) -> Iterator[str]:
    """Even stages have as many decoder layers each, others have them all between them."""
    pipeline, virtual = config.parallel.pipeline, config.parallel.virtual_pipeline
    num_layers = config.model.language.num_layers
    if virtual > 1 and pipeline == 1:
        yield f"parallel.virtual_pipeline {virtual} needs parallel.pipeline of at least 2"
    layout = config.parallel.layout
    if isinstance(layout, list):
        yield from _layout_problems(layout, config)
    elif layout == "even" and num_layers % pipeline:
        yield (
            f"parallel.pipeline {pipeline} does not divide model.language.num_layers {num_layers}"
            "; parallel.layout can cut uneven stages"
        )
    elif layout == "even" and num_layers % (pipeline * virtual):
        yield (
            f"parallel.pipeline {pipeline} x parallel.virtual_pipeline {virtual} does not divide "
            f"model.language.num_layers {num_layers}; parallel.layout can cut uneven chunks"
        )


def _layout_problems(layout: list[int] | list[list[int]], config: RunConfig) -> Iterator[str]:
    pipeline, virtual = config.parallel.pipeline, config.parallel.virtual_pipeline
    if len(layout) != pipeline:
        yield f"parallel.layout has {len(layout)} stages, parallel.pipeline is {pipeline}"
    rows = [[row] if isinstance(row, int) else row for row in layout]
    for stage, row in enumerate(rows):
        if len(row) != virtual:
            found = "one number" if isinstance(layout[stage], int) else f"{len(row)} chunks"
            wanted = f"a list of {virtual} numbers" if virtual > 1 else "its sum"
            yield (
                f"parallel.layout: stage {stage} has {found}, parallel.virtual_pipeline is "
                f"{virtual}: write {wanted}"
            )
    total, num_layers = sum(map(sum, rows)), config.model.language.num_layers
    if total != num_layers:
        yield f"parallel.layout has {total} layers, model.language.num_layers is {num_layers}"


def _sequence_parallel_problems(config: RunConfig) -> Iterator[str]:
    if not config.parallel.sequence:
        return
    tensor = config.parallel.tensor
    if tensor == 1:
        yield "parallel.sequence needs parallel.tensor of at least 2"
    num_tokens = config.stage.sequence_length * config.train.micro_batch_size
    if num_tokens % tensor:
        yield (
            f"parallel.sequence: parallel.tensor {tensor} does not divide "
            f"train.micro_batch_size x stage.sequence_length = {num_tokens}"
        )


def _tile_problems(config: RunConfig) -> Iterator[str]:
    """Tags and sequence lengths are made for the stage's number of tiles."""
    most = config.stage.max_num_tiles
    if config.stage.tiling == "pad_skip" and config.model.fusion != "decoder_only":
        yield (
            f"stage.tiling pad_skip does not go with model.fusion {config.model.fusion}: the tags "
            "of tiles that are left out have no place among tiles that are read by "
            "cross-attention; use pad or stretch"
        )

    def look(blend: dict[str, float | SourceConfig], where: str) -> Iterator[str]:
        for name, entry in blend.items():
            if not isinstance(entry, SourceConfig):
                continue
            if entry.max_num_tiles is not None and entry.max_num_tiles > most:
                yield (
                    f"{where}.{name}.max_num_tiles {entry.max_num_tiles} exceeds "
                    f"stage.max_num_tiles {most}"
                )
            yield from look(entry.blend or {}, f"{where}.{name}.blend")

    yield from look(config.data.blend or {}, "data.blend")


def _length_problems(config: RunConfig) -> Iterator[str]:
    """A sequence holds an image with its prompt, and the decoder knows its positions."""
    stage, longest = config.stage, config.model.language.max_position_embeddings
    num_tiles, fusion = config.max_tiles_per_image, config.model.fusion
    shortest = config.max_tokens_per_image + num_tokens_around_image(config)
    if stage.sequence_length < shortest:
        what = f"{num_tiles} tiles x {config.num_tokens_per_tagged_tile} tokens "
        if fusion == "cross_attention":
            what = f"{num_tiles} tile tags x {config.num_tag_tokens} tokens "
        elif config.model.holds_thumbnails:
            what = f"a tile of {config.num_tokens_per_tagged_tile} tokens "
        fewer = "" if config.model.holds_thumbnails else ", or fewer stage.max_num_tiles"
        yield (
            f"stage.sequence_length {stage.sequence_length} is too short for one image of "
            f"{what}and its prompt: at least {shortest} tokens{fewer}"
        )
    if stage.sequence_length > longest:
        yield (
            f"stage.sequence_length {stage.sequence_length} exceeds "
            f"model.language.max_position_embeddings {longest}"
        )
    budget = stage.max_tiles_per_sequence
    stacks_tiles = config.model.stacks_tiles
    if budget is None and (fusion != "decoder_only" or stacks_tiles):
        key = "model.deepstack tiles" if stacks_tiles else f"model.fusion {fusion}"
        yield (
            f"{key} needs stage.max_tiles_per_sequence: tiles that the decoder "
            f"{'adds to' if stacks_tiles else 'reads beside'} its sequence take no room in it, so "
            "its length does not bound how many there are"
        )
    if fusion == "hybrid" and stage.max_num_tiles > 1 and not stage.use_thumbnail:
        yield (
            "model.fusion hybrid needs stage.use_thumbnail with stage.max_num_tiles "
            f"{stage.max_num_tiles}: the thumbnail is what the decoder has of an image in its "
            "sequence"
        )
    if budget is not None and budget < num_tiles:
        yield (
            f"stage.max_tiles_per_sequence {budget} is less than the {num_tiles} tiles that one "
            "image may have"
        )


def _train_problems(config: RunConfig) -> Iterator[str]:
    train, optimizer, schedule = config.train, config.train.optimizer, config.train.schedule
    if config.model.layer_implementation == "transformer_engine" and train.precision == "fp32":
        yield (
            "train.precision fp32 with model.layer_implementation transformer_engine: its "
            "attention over packed documents takes no fp32; use local or auto"
        )
    if train.global_batch_size % train.micro_batch_size:
        yield not_multiple(config, "train.global_batch_size", "train.micro_batch_size")
    if optimizer.min_lr > optimizer.lr:
        yield f"train.optimizer.min_lr {optimizer.min_lr} exceeds train.optimizer.lr {optimizer.lr}"
    if schedule.decay_steps is not None and schedule.warmup_steps >= schedule.decay_steps:
        yield (
            f"train.schedule.warmup_steps {schedule.warmup_steps} must be less than "
            f"train.schedule.decay_steps {schedule.decay_steps}"
        )
