"""What a sequence holds: how many tiles, and documents of which lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nvlm.config.schema import RunConfig
from nvlm.errors import ConfigError
from nvlm.sizes.visual import VisualLayout


@dataclass(frozen=True)
class Work:
    """Of a sequence (a sample where the stage does not pack), on average over the run.

    num_tiles: tiles; `most_tiles` is the most of any sequence, which memory must hold.
    num_tokens: tokens of samples, padding not counted.
    token_pairs: sum of the squared lengths of its documents, the padding's among them.
    num_samples: samples.
    imbalance: number of data-parallel ranks -> cost of a step's costliest by their mean.
    source: where these come from, in words.
    """

    num_tiles: float
    most_tiles: int
    num_tokens: float
    token_pairs: float
    num_samples: float
    source: str
    imbalance: Mapping[int, float] = field(default_factory=dict)

    def imbalance_of(self, data_size: int) -> float:
        """Of so many data-parallel ranks; 1 where it was not counted."""
        return self.imbalance.get(data_size, 1.0)


def largest_work(config: RunConfig) -> Work:
    """The most that a configuration allows: one full document, and as many tiles as there may be.

    Samples that are not packed are taken to have one image.
    """
    stage, length = config.stage, config.stage.sequence_length
    if stage.packing:
        visual = VisualLayout.from_config(config)
        tiles = visual.num_fitting_tiles(length, stage.max_tiles_per_sequence)
        what = f"full sequences of {tiles} tiles, one document each"
    else:
        tiles = min(config.max_tiles_per_image, stage.max_tiles_per_sequence or math.inf)
        tiles = int(tiles)
        what = f"full sequences of one image with {tiles} tiles each"
    return Work(
        num_tiles=tiles,
        most_tiles=tiles,
        num_tokens=length,
        token_pairs=length * length,
        num_samples=1,
        source=f"the most that the configuration allows ({what})",
    )


def most_tiles(config: RunConfig) -> int:
    """That a micro-batch can have."""
    return largest_work(config).most_tiles * config.train.micro_batch_size


def stated_work(
    config: RunConfig, base: Work, num_tiles: float | None, num_tokens: float | None
) -> Work:
    """`base` with what `--tiles` and `--tokens` say.

    Args:
        num_tiles: tiles of a sequence, on average.
        num_tokens: tokens of a sample, on average; packs hold as many such samples as fit.

    Raises:
        ConfigError: more than a sequence holds.
    """
    if num_tiles is None and num_tokens is None:
        return base
    length, work, said = config.stage.sequence_length, base, []
    if num_tokens is not None:
        if not 1 <= num_tokens <= length:
            raise ConfigError(
                f"--tokens {num_tokens:g}: a sample has from 1 to stage.sequence_length {length} "
                "tokens"
            )
        num_samples = int(length // num_tokens) if config.stage.packing else 1
        padding = length - num_samples * num_tokens
        work = replace(
            work,
            num_tokens=num_samples * num_tokens,
            token_pairs=num_samples * num_tokens**2 + padding**2,
            num_samples=num_samples,
        )
        said.append(f"--tokens {num_tokens:g}")
    if num_tiles is not None:
        fitting = VisualLayout.from_config(config).num_fitting_tiles(length)
        if not 0 <= num_tiles <= fitting:
            raise ConfigError(
                f"--tiles {num_tiles:g}: a sequence of {length} tokens has from 0 to {fitting} "
                "tiles"
            )
        most = max(base.most_tiles, math.ceil(num_tiles))
        work = replace(work, num_tiles=num_tiles, most_tiles=most)
        said.append(f"--tiles {num_tiles:g}")
    return replace(work, source=f"{' and '.join(said)}; else {base.source}")
