"""Rules of `parallel.context`: what goes with rows whose tokens several processes share."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.schema import RunConfig


def context_problems(config: RunConfig) -> Iterator[str]:
    context, recipe = config.parallel.context, config.train.fp8.recipe
    if context == 1:
        return
    if config.parallel.shares_tiles:
        yield (
            f"parallel.context {context} does not go with parallel.vision tile_parallel: context-"
            "parallel processes share the tiles of each row already; use parallel.vision tensor"
        )
    if recipe != "none":
        yield (
            f"parallel.context {context} does not go with train.fp8.recipe {recipe}: rows are "
            "padded document by document, not to the multiples that 8-bit products ask; use none"
        )
    if config.train.attention_dropout:
        yield (
            f"parallel.context {context} does not go with train.attention_dropout "
            f"{config.train.attention_dropout}: attention of shared rows has none; use 0, or "
            "train.hidden_dropout"
        )
    shortest = 2 * context
    if config.stage.sequence_length < shortest:
        yield (
            f"parallel.context {context} cuts rows into {shortest} parts, and "
            f"stage.sequence_length {config.stage.sequence_length} is shorter"
        )
