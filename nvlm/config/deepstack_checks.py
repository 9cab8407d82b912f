"""Rules of `model.deepstack`, of levels and of tiles, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from nvlm.config.schema import RunConfig


def deepstack_problems(config: RunConfig) -> Iterator[str]:
    """Every rule that is broken, each in one line."""
    model = config.model
    key = f"model.deepstack {model.deepstack}"
    if model.deepstack == "none":
        return
    if model.deepstack == "levels" and model.num_connectors == 1:
        yield (
            f"{key} needs one encoder with model.vision.feature_layers, such as [-17, -9, -1]: what"
            " is added behind decoder layers, and last what the connector reads"
        )
        return
    if model.fusion != "decoder_only":
        yield (
            f"{key} does not go with model.fusion {model.fusion}: it adds to image tokens of the "
            "decoder's sequence; use decoder_only"
        )
    if model.language.visual_weights != "none":
        yield (
            f"{key} does not go with model.language.visual_weights {model.language.visual_weights},"
            " whose layers are of a class of their own; use none"
        )
    if config.parallel.context > 1:
        yield (
            f"parallel.context {config.parallel.context} does not go with {key}: what is added is "
            "not shared out; use parallel.context 1"
        )
    if model.stacks_tiles:
        yield from _tile_problems(config, key)
    yield from _layer_problems(config, key)


def _tile_problems(config: RunConfig, key: str) -> Iterator[str]:
    """What the tokens of tiles have to be, to be laid out as the image and dealt out again."""
    stage, connector = config.stage, config.model.connector
    num_tokens = config.model.num_tokens_per_tile
    if stage.max_num_tiles > 1 and not stage.use_thumbnail:
        yield (
            f"{key} needs stage.use_thumbnail with stage.max_num_tiles {stage.max_num_tiles}: the "
            "thumbnail is what the decoder has of an image in its sequence"
        )
    if stage.tiling == "pad_skip":
        yield (
            f"stage.tiling pad_skip does not go with {key}: without the tiles that are left out "
            "the others do not show what the thumbnail shows; use pad or stretch"
        )
    if stage.has_soft_tags:
        yield (
            f"stage.tile_tags soft does not go with {key}: the tiles whose tags it learns are not "
            "in the sequence; use 1d or none"
        )
    if connector.kind == "attention_pooling" or isqrt(num_tokens) ** 2 != num_tokens:
        yield (
            f"{key} does not go with model.connector of kind {connector.kind} with {num_tokens} "
            "tokens of a tile: tokens have to stand in a square, as the patches do, so that those "
            "of all tiles are the image; use mlp, linear, average_pooling or c_abstractor"
        )


def _layer_problems(config: RunConfig, key: str) -> Iterator[str]:
    """What is added does not travel: the layers that it is for lie in the first chunk."""
    number = config.num_added_rows
    if config.parallel.layout == "auto":
        yield f"parallel.layout auto does not go with {key}: name the layers of each stage, or even"
        return
    num_layers = _layers_of_first_chunk(config)
    if number > num_layers:
        of_tiles = f" (stage.max_num_tiles {number})" if config.model.stacks_tiles else ""
        yield (
            f"{key} adds behind the first {number} decoder layers{of_tiles}, and the first "
            f"pipeline stage's first chunk has {num_layers} (parallel.pipeline, virtual_pipeline, "
            "layout): what is added does not travel"
        )


def _layers_of_first_chunk(config: RunConfig) -> int:
    parallel = config.parallel
    if isinstance(parallel.layout, str):
        num_chunks = parallel.pipeline * parallel.virtual_pipeline
        return config.model.language.num_layers // num_chunks
    first = parallel.layout[0]
    return first if isinstance(first, int) else first[0]
