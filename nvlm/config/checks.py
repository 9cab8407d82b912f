"""Rules across sections, checked before any process starts."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from operator import attrgetter

from nvlm.config.schema import RunConfig, SourceConfig
from nvlm.errors import ConfigError

# `<|im_start|>user\n`, `<Image>`, `</Image>\n`, `<|im_end|>\n`, `<|im_start|>assistant\n` and one
# token of question and answer each: the least that stands around an image.
NUM_TOKENS_AROUND_IMAGE = 16


def check_config(config: RunConfig, source: str = "configuration") -> None:
    """Raise `ConfigError` with every contradiction between sections."""
    if problems := list(_problems(config)):
        raise ConfigError(f"{source}: {'; '.join(problems)}")


def check_world_size(config: RunConfig, world_size: int) -> int:
    """The data-parallel size that `world_size` processes leave.

    Raises:
        ConfigError: the processes do not fit the layout or the batch does not fit them.
    """
    model_parallel = config.parallel.model_parallel_size
    layout = (
        f"parallel.tensor {config.parallel.tensor} x parallel.pipeline {config.parallel.pipeline}"
    )
    if world_size % model_parallel:
        raise ConfigError(
            f"{world_size} processes do not fit {layout} = {model_parallel}: start a multiple of "
            f"{model_parallel} processes (torchrun --nproc-per-node) or change parallel.*"
        )
    data_parallel = world_size // model_parallel
    per_step = data_parallel * config.train.micro_batch_size
    if config.train.global_batch_size % per_step:
        raise ConfigError(
            f"train.global_batch_size {config.train.global_batch_size} is not a multiple of "
            f"data-parallel size {data_parallel} x train.micro_batch_size "
            f"{config.train.micro_batch_size} = {per_step}"
        )
    if config.parallel.virtual_pipeline > 1:
        _check_interleaving(config, data_parallel)
    return data_parallel


def _check_interleaving(config: RunConfig, data_parallel: int) -> None:
    """Chunks take turns on as many micro-batches as there are pipeline stages."""
    pipeline, train = config.parallel.pipeline, config.train
    num_micro_batches = train.global_batch_size // (data_parallel * train.micro_batch_size)
    if num_micro_batches % pipeline:
        multiple = data_parallel * train.micro_batch_size * pipeline
        raise ConfigError(
            f"parallel.virtual_pipeline {config.parallel.virtual_pipeline} needs micro-batches per "
            f"step and data rank in multiples of parallel.pipeline {pipeline}, and there are "
            f"{num_micro_batches}: make train.global_batch_size {train.global_batch_size} a "
            f"multiple of {multiple}"
        )


def _problems(config: RunConfig):
    vision, language, parallel = config.model.vision, config.model.language, config.parallel
    if vision.hidden_size % vision.num_attention_heads:
        yield _not_multiple(config, "model.vision.hidden_size", "model.vision.num_attention_heads")
    if vision.num_stored_attention_heads < vision.num_attention_heads:
        yield (
            f"model.vision.num_stored_attention_heads {vision.num_stored_attention_heads} is less "
            f"than model.vision.num_attention_heads {vision.num_attention_heads}"
        )
    if vision.image_size % (2 * vision.patch_size):
        yield (
            f"model.vision.image_size {vision.image_size} must hold an even number of patches of "
            f"{vision.patch_size} pixels: pixel shuffle merges 2 x 2"
        )
    if language.hidden_size % language.num_attention_heads:
        yield _not_multiple(
            config, "model.language.hidden_size", "model.language.num_attention_heads"
        )
    if language.num_attention_heads % language.num_query_groups:
        yield _not_multiple(
            config, "model.language.num_attention_heads", "model.language.num_query_groups"
        )

    for key, value in {
        "model.vision.num_stored_attention_heads": vision.num_stored_attention_heads,
        "model.vision.ffn_hidden_size": vision.ffn_hidden_size,
        "model.projector.ffn_hidden_size": config.model.projector.ffn_hidden_size,
        "model.language.num_attention_heads": language.num_attention_heads,
        "model.language.num_query_groups": language.num_query_groups,
        "model.language.ffn_hidden_size": language.ffn_hidden_size,
        "model.language.vocab_size": language.vocab_size,
    }.items():
        if value % parallel.tensor:
            yield f"parallel.tensor {parallel.tensor} does not divide {key} {value}"
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        yield (
            f"parallel.virtual_pipeline {parallel.virtual_pipeline} needs parallel.pipeline of at "
            "least 2"
        )
    if language.num_layers % parallel.pipeline:
        yield (
            f"parallel.pipeline {parallel.pipeline} does not divide model.language.num_layers "
            f"{language.num_layers}"
        )
    elif language.num_layers % (parallel.pipeline * parallel.virtual_pipeline):
        yield (
            f"parallel.pipeline {parallel.pipeline} x parallel.virtual_pipeline "
            f"{parallel.virtual_pipeline} does not divide model.language.num_layers "
            f"{language.num_layers}"
        )
    if parallel.sequence and parallel.tensor == 1:
        yield "parallel.sequence needs parallel.tensor of at least 2"
    num_tokens = config.stage.sequence_length * config.train.micro_batch_size
    if parallel.sequence and num_tokens % parallel.tensor:
        yield (
            f"parallel.sequence: parallel.tensor {parallel.tensor} does not divide "
            f"train.micro_batch_size x stage.sequence_length = {num_tokens}"
        )

    if (
        config.model.layer_implementation == "transformer_engine"
        and config.train.precision == "fp32"
    ):
        yield (
            "train.precision fp32 with model.layer_implementation transformer_engine: its "
            "attention over packed documents takes no fp32; use local or auto"
        )
    yield from _recompute_problems(config)

    yield from _tile_problems(config)
    num_image_tokens = config.max_tiles_per_image * config.num_tokens_per_tagged_tile
    shortest = num_image_tokens + NUM_TOKENS_AROUND_IMAGE
    if config.stage.sequence_length < shortest:
        yield (
            f"stage.sequence_length {config.stage.sequence_length} is too short for one image of "
            f"{config.max_tiles_per_image} tiles x {config.num_tokens_per_tagged_tile} tokens "
            f"and its prompt: at least {shortest} tokens, or fewer stage.max_num_tiles"
        )
    if config.stage.sequence_length > language.max_position_embeddings:
        yield (
            f"stage.sequence_length {config.stage.sequence_length} exceeds "
            f"model.language.max_position_embeddings {language.max_position_embeddings}"
        )
    budget = config.stage.max_tiles_per_sequence
    if budget is not None and budget < config.max_tiles_per_image:
        yield (
            f"stage.max_tiles_per_sequence {budget} is less than the {config.max_tiles_per_image} "
            "tiles that one image may have"
        )
    if config.train.global_batch_size % config.train.micro_batch_size:
        yield _not_multiple(config, "train.global_batch_size", "train.micro_batch_size")
    optimizer, schedule = config.train.optimizer, config.train.schedule
    if optimizer.min_lr > optimizer.lr:
        yield f"train.optimizer.min_lr {optimizer.min_lr} exceeds train.optimizer.lr {optimizer.lr}"
    if schedule.decay_steps is not None and schedule.warmup_steps >= schedule.decay_steps:
        yield (
            f"train.schedule.warmup_steps {schedule.warmup_steps} must be less than "
            f"train.schedule.decay_steps {schedule.decay_steps}"
        )


def _recompute_problems(config: RunConfig):
    parallel, vision, language = config.parallel, config.model.vision, config.model.language
    layers_of_stage = {
        "vision": vision.num_layers,
        "language": language.num_layers // parallel.pipeline,
    }
    for part, num_layers in layers_of_stage.items():
        wanted = getattr(config.train.recompute, part)
        key = f"train.recompute.{part}.num_layers"
        if wanted.num_layers is None:
            continue
        if wanted.granularity != "full":
            yield (
                f"{key} {wanted.num_layers} needs train.recompute.{part}.granularity full, which "
                f"is {wanted.granularity}"
            )
        elif wanted.num_layers > num_layers:
            yield (
                f"{key} {wanted.num_layers} is more than the {num_layers} {part} layers of a "
                "pipeline stage"
            )
        elif part == "language" and wanted.num_layers % parallel.virtual_pipeline:
            yield (
                f"{key} {wanted.num_layers} is not a multiple of parallel.virtual_pipeline "
                f"{parallel.virtual_pipeline}: each chunk of a stage recomputes as many layers"
            )
    freezing = [p for p in config.stage.freeze if fnmatchcase("vision_model.", p)]
    if freezing and config.train.recompute.vision.granularity != "none":
        yield (
            f"train.recompute.vision.granularity {config.train.recompute.vision.granularity} has "
            f"nothing to recompute: stage.freeze {freezing[0]!r} freezes the vision model, which "
            "then keeps no activations; set it to none"
        )


def _tile_problems(config: RunConfig) -> Iterator[str]:
    """Tags and sequence lengths are made for the stage's number of tiles."""
    most = config.stage.max_num_tiles

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


def _not_multiple(config: RunConfig, key: str, divisor_key: str) -> str:
    value, divisor = (attrgetter(name)(config) for name in (key, divisor_key))
    return f"{key} {value} is not a multiple of {divisor_key} {divisor}"
