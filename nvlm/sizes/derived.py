"""The numbers that `nvlm config show` prints below a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.config.checks import check_world_size
from nvlm.config.schema import RunConfig
from nvlm.sizes.adapters import frozen_patterns, run_parameters_by_name
from nvlm.sizes.parameters import (
    COMPONENTS,
    ParameterCount,
    count_parameters,
    matches,
    num_zero_parameters,
)


@dataclass(frozen=True)
class DerivedNumbers:
    parameters: dict[str, ParameterCount]  # component -> count
    total: ParameterCount
    # InternViT's heads beyond the real ones: stored, always zero.
    num_zero_parameters: int
    # freeze pattern -> number of parameter tensors that it matches
    num_matches: dict[str, int]
    num_tokens_per_tile: int  # tile tag counted
    max_tiles_per_image: int  # thumbnail counted
    max_tokens_per_image: int  # tile tags counted, `<Image>` and `</Image>` not
    max_tokens_per_image_beside: int  # which the decoder reads by cross-attention
    world_size: int
    data_parallel_size: int
    num_micro_batches: int  # per data-parallel rank and step
    max_tokens_per_step: int  # padding counted
    num_sequences: int  # over the whole run; samples, where the stage does not pack


def derive(config: RunConfig, world_size: int | None = None) -> DerivedNumbers:
    """Compute every derived number.

    Args:
        world_size: number of processes; None: the fewest that the layout needs.

    Raises:
        ConfigError: `world_size` does not fit the layout, or the batch does not fit it.
    """
    if world_size is None:
        world_size = config.parallel.fewest_processes
    data_parallel_size = check_world_size(config, world_size)
    named, frozen, train = run_parameters_by_name(config), frozen_patterns(config), config.train
    return DerivedNumbers(
        parameters={name: count_parameters(named, frozen, name) for name in COMPONENTS},
        total=count_parameters(named, frozen),
        num_zero_parameters=num_zero_parameters(config.model),
        num_matches={
            pattern: sum(matches(name, pattern) for name in named)
            for pattern in config.stage.freeze
        },
        num_tokens_per_tile=config.num_tokens_per_tagged_tile,
        max_tiles_per_image=config.max_tiles_per_image,
        max_tokens_per_image=config.max_tokens_per_image,
        max_tokens_per_image_beside=config.max_tokens_per_image_beside,
        world_size=world_size,
        data_parallel_size=data_parallel_size,
        num_micro_batches=train.global_batch_size // (data_parallel_size * train.micro_batch_size),
        max_tokens_per_step=train.global_batch_size * config.stage.sequence_length,
        num_sequences=train.steps * train.global_batch_size,
    )
