"""Rules of `model.fusion` and `model.cross_attention`, and what does not go with them."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.schema import RunConfig


def fusion_problems(config: RunConfig) -> Iterator[str]:
    """Every rule that is broken, each in one line."""
    model, settings = config.model, config.model.cross_attention
    if (model.fusion == "decoder_only") != (settings is None):
        yield (
            f"model.fusion {model.fusion} and model.cross_attention "
            f"{'null' if settings is None else 'given'}: NVLM-X and NVLM-H (cross_attention, "
            "hybrid) need its settings, NVLM-D (decoder_only) has none"
        )
        return
    if settings is None:
        return
    if not model.cross_attention_layers:
        yield (
            f"model.cross_attention.layer_interval {settings.layer_interval} is more than the "
            f"{model.language.num_layers} layers of model.language: none would read images"
        )
    heads, groups = model.language.num_attention_heads, model.num_cross_attention_groups
    if heads % groups:
        yield (
            f"model.language.num_attention_heads {heads} is not a multiple of "
            f"model.cross_attention.num_query_groups {groups}"
        )
    if groups % config.parallel.tensor:
        yield (
            f"parallel.tensor {config.parallel.tensor} does not divide "
            f"model.cross_attention.num_query_groups {groups}"
        )
    if config.parallel.context > 1:
        yield (
            f"parallel.context {config.parallel.context} does not go with model.fusion "
            f"{model.fusion}: what the decoder reads beside its row is not shared out; use 1"
        )
    if config.train.fp8.recipe != "none":
        yield (
            f"train.fp8.recipe {config.train.fp8.recipe} does not go with model.fusion "
            f"{model.fusion}: the row that cross-attention reads has any length, and 8-bit "
            "products ask for multiples of 16; use none"
        )
    yield from _level_problems(config)


def _level_problems(config: RunConfig) -> Iterator[str]:
    """Of encoder layers that cross-attention reads in turn."""
    model, key = config.model, "model.cross_attention.levels in_turn"
    if not model.reads_levels_in_turn:
        return
    if model.fusion == "hybrid":
        yield (
            f"{key} does not go with model.fusion hybrid, whose thumbnails stand in the decoder's "
            "sequence, where there is one level; use cross_attention, or together"
        )
    number, num_layers = model.num_connectors, len(model.cross_attention_layers)
    interval = model.cross_attention and model.cross_attention.layer_interval
    if number == 1:
        yield (
            f"{key} needs one encoder with model.vision.feature_layers, such as [-17, -9, -1]: the "
            "levels that layers of cross-attention read one after another"
        )
    elif number > num_layers:
        yield (
            f"{key} gives the {num_layers} layers with cross-attention (layer_interval "
            f"{interval}) one "
            f"level each, and model.vision.feature_layers names {number}: some would be read by "
            "none; name fewer"
        )
