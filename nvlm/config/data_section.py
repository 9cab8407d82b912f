"""The data of a run: folders, sources and their shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from nvlm.config.section import Section
from nvlm.config.values import (
    Count,
    FolderName,
    Name,
    NumTiles,
    NumWorkers,
    PathText,
    Positive,
    Share,
)


def _kind_of_entry(entry: object) -> str:
    return "settings" if isinstance(entry, dict | SourceConfig) else "weight"


# What follows a source's name in a blend.
BlendEntry = Annotated[
    Annotated[Positive, Tag("weight")] | Annotated["SourceConfig", Tag("settings")],
    Discriminator(_kind_of_entry),
]


class SourceConfig(Section):
    """One source of a blend with its settings, or a blend that counts as one source."""

    weight: Positive = 1.0
    """Share of the draws, relative to the other sources of its blend."""
    path: PathText | None = None
    """Folder (or one shard) under `data.root`/`data.split`, or an absolute one. null: the name."""
    max_num_tiles: NumTiles | None = None
    """Most tiles per image; null: the stage's."""
    prompts: Name | None = None
    """Prompt pool that asks this source's samples; null: the pool named like the sample's task."""
    loss_weight: Positive = 1.0
    """Factor on the loss of its tokens."""
    max_epochs: Positive | None = None
    """Passes over its samples after which it is used up. null: as many as the run takes."""
    blend: dict[Name, BlendEntry] | None = Field(default=None, min_length=1)
    """The sources below this one, their weights relative to each other. They take over its path,
    max_num_tiles, prompts and max_epochs where they have none; loss_weight multiplies."""


class DataConfig(Section):
    """`root/split/*.tar` is one source; `root/split/NAME/*.tar` is one source per folder."""

    root: PathText
    """Folder of the shards."""
    split: FolderName = "train"
    """Folder below `root`."""
    blend: dict[Name, BlendEntry] | None = Field(default=None, min_length=1)
    """Source name -> weight, or its settings. null: every source found, weighted by its number of
    samples."""
    num_workers: NumWorkers = 2
    """Processes that read and decode for each process that reads: one of each model replica, or all
    with `parallel.vision: tile_parallel`. 0: the one that trains does."""
    packing_window: Count = 512
    """Samples that the packer looks at together. Part of the order: changing it changes the run."""
    index_dir: PathText | None = None
    """Where indexes are kept. null: `run.dir/index`."""
    prompt_pools: PathText | None = None
    """YAML file of prompt pools. null: the ones that come with nvlm."""
    num_prompt_wordings: Count | None = None
    """Wordings of each prompt pool that are used, its first ones. null: all."""
    image_resize: Literal["fast", "exact"] = "fast"
    """`fast` resizes with torch (within 2/255 of Pillow); `exact` is bit-equal to Pillow's
    bicubic."""
    max_image_megapixels: Positive = 100.0
    """Images of more pixels are skipped as decompression bombs."""
    num_video_frames: Count = 8
    """Frames taken from a video, evenly spaced; each is one tile."""
    max_skipped_share: Share = 0.05
    """A run whose share of skipped samples exceeds this stops and says why. 1: never."""
