"""Rules of the decoder's switches: what does not go with each of them (docs/switches.md)."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.deepstack_checks import deepstack_problems
from nvlm.config.schema import RunConfig


def switch_problems(config: RunConfig) -> Iterator[str]:
    """Every rule that is broken, each in one line."""
    yield from _attention_problems(config)
    yield from _weight_problems(config)
    yield from _tag_problems(config)
    yield from _alignment_problems(config)
    yield from deepstack_problems(config)


def _attention_problems(config: RunConfig) -> Iterator[str]:
    model, key = config.model, "model.visual_attention bidirectional"
    if not model.sees_both_ways:
        return
    if model.fusion == "cross_attention":
        yield (
            f"{key} does not go with model.fusion cross_attention: no image token is in the "
            "decoder's sequence; use causal"
        )
    if config.parallel.context > 1:
        yield (
            f"parallel.context {config.parallel.context} does not go with {key}: its processes "
            "share causal rows; use parallel.context 1"
        )


def _weight_problems(config: RunConfig) -> Iterator[str]:
    weights = config.model.language.visual_weights
    if weights == "none":
        return
    key = f"model.language.visual_weights {weights}"
    if config.model.fusion != "decoder_only":
        yield (
            f"{key} does not go with model.fusion {config.model.fusion}: what is read by "
            "cross-attention has weights of its own there; use none"
        )
    if config.model.language.moe is not None:
        yield f"{key} does not go with model.language.moe, whose experts tokens choose; use none"
    if config.parallel.context > 1:
        yield (
            f"parallel.context {config.parallel.context} does not go with {key}: the image tokens "
            "of a row are not known on each of its processes; use parallel.context 1"
        )
    if config.train.fp8.recipe != "none":
        yield (
            f"train.fp8.recipe {config.train.fp8.recipe} does not go with {key}: a row has any "
            "number of image tokens, and 8-bit products ask for multiples of 16; use none"
        )
    if config.train.recompute.language.granularity == "selective":
        yield (
            f"train.recompute.language.granularity selective does not go with {key}: norms that "
            "are computed again would not know which tokens are images; use full or none"
        )
    if config.stage.adapters:
        yield (
            f"stage.adapters does not go with {key}: an adapter would be that of text and images "
            "alike; train the visual weights themselves (stage.freeze, '!*.visual_*')"
        )


def _tag_problems(config: RunConfig) -> Iterator[str]:
    stage, key = config.stage, "stage.tile_tags soft"
    if not stage.has_soft_tags:
        if stage.num_soft_tag_tokens != 1:
            yield (
                f"stage.num_soft_tag_tokens {stage.num_soft_tag_tokens} is of {key}, and "
                f"stage.tile_tags is {stage.tile_tags}: leave it out"
            )
        return
    if config.model.fusion != "decoder_only":
        yield (
            f"{key} does not go with model.fusion {config.model.fusion}, whose tags say in text "
            "which tile is read by cross-attention; use 1d"
        )
    if config.train.distill is not None:
        yield (
            f"train.distill does not go with {key}: the teacher reads the same tokens, and has "
            "learned no such tags, or others; use 1d"
        )


def _alignment_problems(config: RunConfig) -> Iterator[str]:
    stage, key = config.stage, "stage.alignment"
    if stage.alignment is None:
        return
    if stage.alignment.num_levels < 2:
        yield (
            f"{key}.num_levels {stage.alignment.num_levels}: one level tells samples apart by "
            "nothing; use 2 or more, or no stage.alignment"
        )
    if config.model.fusion != "decoder_only":
        yield (
            f"{key} does not go with model.fusion {config.model.fusion}, which reads images beside "
            "the decoder's sequence; use decoder_only"
        )
    if stage.has_soft_tags:
        yield (
            f"{key} does not go with stage.tile_tags soft, whose vectors have the same numbers in "
            "a row; use 1d or none"
        )
    if config.parallel.context > 1:
        yield (
            f"parallel.context {config.parallel.context} does not go with {key}: what a gate reads "
            "is not shared out; use parallel.context 1"
        )
    if config.train.distill is not None:
        yield (
            f"train.distill does not go with {key}: the teacher reads the same tokens, and has "
            "learned no such vectors, or others; leave one out"
        )
    if stage.mixes_levels and stage.max_num_tiles > 1 and not stage.use_thumbnail:
        yield (
            f"{key}.levels_from gate reads a tile of the whole image, and stage.use_thumbnail is "
            f"false with stage.max_num_tiles {stage.max_num_tiles}: use true, or one tile"
        )
