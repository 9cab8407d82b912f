"""The samples of a source, read one after another: what the index measures and evaluation asks.

One way for both, so that they agree on which samples a source has, what each says under the
source's settings, and what is wrong with one. No image is decoded. This file imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nvlm.config import RunConfig
from nvlm.data.index.stored import ReadSample, read_sample
from nvlm.data.samples.kinds import SampleParser
from nvlm.data.samples.prompts import load_prompt_pools
from nvlm.data.samples.repairs import noting_repairs
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.energon import excluded_samples, read_field_map
from nvlm.data.shards.shard import ShardReader, StoredSample, scan_shard
from nvlm.data.shards.sources import Source
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError


@dataclass(frozen=True)
class SourceReading:
    """What decides what a source's samples are, beside its shards."""

    parser: SampleParser
    max_megapixels: float
    max_frames: int  # of a video
    excluded: frozenset[str]  # SHARD/KEY of what a folder's Energon settings leave out

    @classmethod
    def from_config(
        cls, config: RunConfig, source: Source, num_levels: int | None = None
    ) -> SourceReading:
        """How `source` is read in a run.

        Args:
            num_levels: see `SampleParser`.

        Raises:
            DataError: a prompt pool is missing, or the folder's Energon settings are not read.
        """
        pools = load_prompt_pools(config.data.prompt_pools, config.data.num_prompt_wordings)
        return cls(
            SampleParser(pools, source.settings.prompts, read_field_map(source.folder), num_levels),
            config.data.max_image_megapixels,
            config.data.num_video_frames,
            frozenset(excluded_samples(source.folder)),
        )


@dataclass(frozen=True)
class ShardReading:
    """What decides the rows of a shard, beside its content."""

    encoder: SampleEncoder
    of_source: SourceReading


@dataclass(frozen=True)
class Reading:
    """One sample of a shard as read, or what is wrong with it."""

    key: str  # printable; "" where the shard itself is damaged
    sample: ReadSample | None
    problem: SampleError | None
    repairs: dict[str, int]  # of its text, as in samples/repairs.py


def shard_name(source: Source, shard: Path) -> str:
    """A shard as the source's settings and its index name it: relative to the source's folder."""
    return os.path.relpath(shard, source.folder)


def read_shard(path: Path, name: str, how: SourceReading) -> Iterator[Reading]:
    """Every sample of a shard in order, and last, with no key, what ended the reading early.

    Args:
        name: from `shard_name`.

    Raises:
        DataError: the shard cannot be read for now, or the source's settings do not fit a sample.
    """
    stored, damage = scan_shard(path)
    with ShardReader() as reader:
        for sample in stored:
            if f"{name}/{sample.key}" not in how.excluded:
                yield _read(reader, path, sample, how)
    if damage is not None:
        yield Reading("", None, damage, {})


def _read(reader: ShardReader, path: Path, stored: StoredSample, how: SourceReading) -> Reading:
    key = stored.key.encode("utf-8", "backslashreplace").decode()
    with noting_repairs() as repairs:
        try:
            read = read_sample(
                reader, str(path), stored, how.parser, how.max_megapixels, how.max_frames
            )
        except SampleError as error:
            return Reading(key, None, error, dict(repairs))
        except DataError as error:  # not the sample's fault but its source's settings'
            raise DataError(f"{path}: sample {key}: {error}") from None
    return Reading(key, read, None, dict(repairs))
