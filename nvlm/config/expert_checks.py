"""Rules of a mixture of experts, checked before any process starts."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.schema import ParallelConfig, RunConfig


def expert_problems(config: RunConfig) -> Iterator[str]:
    """Every rule of `model.language.moe` and `parallel.expert` that is broken, in one line."""
    moe, parallel, key = config.model.language.moe, config.parallel, "model.language.moe"
    if moe is None:
        if parallel.expert > 1:
            yield f"parallel.expert {parallel.expert} needs experts: {key} is not set"
        return
    if not 2 <= moe.top_k <= moe.num_experts:
        yield (
            f"{key}.top_k {moe.top_k} must be from 2 to {key}.num_experts {moe.num_experts}: a "
            "single expert always has the share 1, of which the router learns nothing"
        )
    if moe.every_nth_layer > config.model.language.num_layers:
        yield (
            f"{key}.every_nth_layer {moe.every_nth_layer} is more than "
            f"model.language.num_layers {config.model.language.num_layers}: no layer has experts"
        )
    if moe.num_experts % parallel.expert:
        yield (
            f"parallel.expert {parallel.expert} does not divide {key}.num_experts {moe.num_experts}"
        )
    if config.train.fp8.recipe != "none":
        yield (
            f"train.fp8.recipe {config.train.fp8.recipe} does not go with {key}: an expert gets "
            "any number of tokens, and 8-bit products need multiples of 16; set it to none"
        )
    yield from _question_problems(config)


def expert_training_problems(config: RunConfig) -> Iterator[str]:
    """What training with experts asks of a layout, and answering does not."""
    parallel = config.parallel
    if config.model.language.moe and parallel.tensor > 1 and not parallel.sequence:
        yield (
            f"model.language.moe with parallel.tensor {parallel.tensor} needs parallel.sequence "
            "true: else each tensor-parallel process would send the same tokens through the experts"
        )


def expert_misfits(parallel: ParallelConfig, world_size: int) -> Iterator[str]:
    """Why so many processes cannot share experts."""
    of_stage = world_size // parallel.pipeline
    if of_stage % parallel.expert:
        yield (
            f"parallel.expert {parallel.expert} does not divide the {of_stage} processes of a "
            f"pipeline stage ({world_size} processes / parallel.pipeline {parallel.pipeline})"
        )


def _question_problems(config: RunConfig) -> Iterator[str]:
    """Data-parallel ranks answer as many passes as their own questions take."""
    parallel, validation = config.parallel, config.validation
    if parallel.tensor % parallel.expert == 0 or validation.every is None:
        return
    for name in ("questions", "benchmarks"):
        if getattr(validation, name):
            yield (
                f"validation.{name} needs experts that no two data-parallel ranks share, since "
                f"each answers at its own pace: parallel.expert {parallel.expert} does not divide "
                f"parallel.tensor {parallel.tensor}"
            )
