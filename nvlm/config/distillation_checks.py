"""Rules of `train.distill`: where a teacher has to be."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.schema import RunConfig


def distillation_problems(config: RunConfig) -> Iterator[str]:
    if config.train.distill is None:
        return
    parallel = config.parallel
    for key, value in (("pipeline", parallel.pipeline), ("context", parallel.context)):
        if value > 1:
            yield (
                f"train.distill does not go with parallel.{key} {value}: the teacher's logits are "
                "computed where the loss is, by the whole teacher; use parallel.tensor"
            )
    if parallel.shares_tiles:
        yield (
            "train.distill does not go with parallel.vision tile_parallel, which hands over "
            "features of one encoder, and the teacher has its own; use parallel.vision tensor"
        )
    if config.train.fp8.recipe != "none":
        yield (
            f"train.distill does not go with train.fp8.recipe {config.train.fp8.recipe}: the "
            "teacher would be computed in 8 bits too; use none"
        )
