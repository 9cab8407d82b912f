"""The index: for every sample of a source its byte ranges, image sizes and text lengths.

Built in one pass over tar headers, text members and image headers (build.py; no image is
decoded). From it the order, the lengths and the packs of a whole run follow without touching the
shards. Its columns are files mapped into memory, so that a source may have any number of samples.

A source's folder `INDEX_DIR/SOURCE-HASH/` has `parts/`, the rows of each shard; `columns-.../`, the
same joined; and `index.json`, which says what they are valid for: a list of shards (names, sizes,
modification times) and all settings that decide the rows, among them the tokenizer and the
template. Anything else is another index, or rebuilds this one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.config.values import MAX_NUM_TILES
from nvlm.data.images.image import readable_formats
from nvlm.data.index.column_types import (
    COLUMN_GROUPS,
    REJECTED_FILE,
    SAMPLE_COLUMNS,
    column_types,
)
from nvlm.data.index.columns import DamagedIndexError, check_starts, map_columns
from nvlm.data.index.one_builder import one_builds
from nvlm.data.index.reading import ShardReading, SourceReading, shard_name
from nvlm.data.samples.kinds import KINDS, SampleParser
from nvlm.data.samples.prompts import fingerprint, load_prompt_pools
from nvlm.data.shards.shard import ByteRange
from nvlm.data.shards.sources import Source, find_sources
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError
from nvlm.files import read_json_lines, write_text
from nvlm.hashes import hash_json
from nvlm.printing import say
from nvlm.sizes.visual import Grid

if TYPE_CHECKING:
    from nvlm.data.index.build import Shard, ShowProgress

FORMAT_VERSION = 4
_METADATA_FILE = "index.json"
# What opening an index raises where it is not what was written.
_DAMAGE = (DamagedIndexError, OSError, ValueError, LookupError, TypeError, AttributeError)


class SourceIndex:
    """A source of n samples. Columns are arrays mapped from files; one value each:

    Of samples [n]: key_hash, shard (index into `shards`), task_number, kind_number, num_frames (of
    its video; 0: it has none), loss_weight (its own, without its source's).
    Of text members, images (frames of a video among them), turns and variants, which are lists per
    sample: sample i has values `{group}_starts[i]` up to `{group}_starts[i + 1]`. See
    `column_types.LIST_COLUMNS` for names and units.
    """

    key_hash: NDArray[np.uint64]
    shard: NDArray[np.int32]
    task_number: NDArray[np.int32]
    kind_number: NDArray[np.uint8]
    num_frames: NDArray[np.uint16]
    loss_weight: NDArray[np.float32]
    image_starts: NDArray[np.int64]
    image_width: NDArray[np.int32]
    image_height: NDArray[np.int32]
    lead_single: NDArray[np.int32]
    lead_multiple: NDArray[np.int32]
    turn_starts: NDArray[np.int64]
    turn_tokens: NDArray[np.int32]
    turn_images: NDArray[np.int32]
    turn_trained: NDArray[np.int32]
    choice_starts: NDArray[np.int64]
    choice_tokens: NDArray[np.int32]
    choice_weight: NDArray[np.float32]
    choice_trained: NDArray[np.int32]

    def __init__(
        self, source: Source, parser: SampleParser, folder: Path, metadata: dict[str, Any]
    ):
        self.source = source.name
        self.settings = source.settings
        self.parser = parser
        self.shards = source.shards
        self.template: dict[str, Any] = metadata["settings"]["template"]
        # Hash of everything that decides which samples there are and what they are planned as.
        # Paths and modification times are no part of it: moved or copied data go on.
        self.content_hash: str = metadata["content_hash"]
        self.tag_lengths: dict[Grid, int] = {(c, r): n for c, r, n in metadata["tag_lengths"]}
        self.num_rejected: dict[str, int] = metadata["num_rejected"]  # by reason
        self._folder = folder / metadata["columns"]
        self._num_samples: int = metadata["num_samples"]
        self._tasks: list[str] = metadata["tasks"]
        self._text_members: list[str] = metadata["text_members"]
        columns = map_columns(self._folder, metadata["table"], column_types())
        lengths = {len(columns[name]) for name in SAMPLE_COLUMNS}
        if lengths != {self._num_samples}:
            raise DamagedIndexError(f"columns of {sorted(lengths)} samples")
        check_starts(columns, COLUMN_GROUPS, self._num_samples)
        if self.rejected_file.stat().st_size != metadata["num_rejected_bytes"]:
            raise DamagedIndexError(f"{REJECTED_FILE} was changed")
        vars(self).update(columns)

    def __len__(self) -> int:
        return self._num_samples

    @property
    def num_images(self) -> int:
        return len(self.image_width)

    def key(self, row: int) -> str:
        return self.key_bytes[self.key_starts[row] : self.key_starts[row + 1]].tobytes().decode()

    def task(self, row: int) -> str:
        return self._tasks[self.task_number[row]]

    def kind(self, row: int) -> str:
        return KINDS[self.kind_number[row]]

    def shard_path(self, row: int) -> Path:
        return self.shards[self.shard[row]]

    def text_ranges(self, row: int) -> dict[str, ByteRange]:
        """Extension -> place of the sample's text members."""
        members = range(self.text_starts[row], self.text_starts[row + 1])
        return {
            self._text_members[self.text_member[i]]: ByteRange(
                int(self.text_offset[i]), int(self.text_size[i])
            )
            for i in members
        }

    def image_ranges(self, row: int) -> list[ByteRange]:
        images = range(self.image_starts[row], self.image_starts[row + 1])
        return [ByteRange(int(self.image_offset[i]), int(self.image_size[i])) for i in images]

    @property
    def rejected(self) -> list[SkippedSample]:
        """What the source has that cannot be used. Read again each time."""
        return list(self.iterate_rejected())

    @property
    def rejected_file(self) -> Path:
        return self._folder / REJECTED_FILE

    def iterate_rejected(self) -> Iterator[SkippedSample]:
        for shard, key, reason, detail in read_json_lines(self.rejected_file):
            yield SkippedSample(self.source, shard, key, reason, detail)


def open_indexes(
    config: RunConfig,
    encoder: SampleEncoder | None = None,
    show: ShowProgress | None = None,
    sources: dict[str, Source] | None = None,
) -> list[SourceIndex]:
    """The indexes of the run's sources, sorted by name; missing and stale ones are built.

    Args:
        sources: others than the run's, by name in order.

    Raises:
        DataError: there are no shards, the blend names an unknown source, or the tokenizer or a
            prompt pool is missing. Broken shards and samples are no error: they are in
            `SourceIndex.rejected`.
    """
    sources = find_sources(config) if sources is None else sources
    encoder = encoder or SampleEncoder.from_config(config)
    return [_open_index(config, source, encoder, show) for source in sources.values()]


def existing_indexes(config: RunConfig) -> list[SourceIndex] | None:
    """As `open_indexes`, but nothing is built: None where one is missing, stale or damaged.

    Raises:
        DataError: as there.
    """
    if not _root(config).is_dir():
        return None
    encoder, indexes = SampleEncoder.from_config(config), []
    for source in find_sources(config).values():
        folder, settings, reading = _place(config, source, encoder)
        index = _load_if_fresh(folder, source, reading.of_source.parser, settings)
        if index is None:
            return None
        indexes.append(index)
    return indexes


def _root(config: RunConfig) -> Path:
    return Path(config.data.index_dir or Path(config.run.dir) / "index")


def _place(
    config: RunConfig, source: Source, encoder: SampleEncoder
) -> tuple[Path, dict[str, Any], ShardReading]:
    """A source's folder of the index, the settings that name it, and how its shards are read."""
    num_levels = config.stage.num_levels_of_samples
    reading = ShardReading(encoder, SourceReading.from_config(config, source, num_levels))
    settings = _settings(config, source, reading)
    name = re.sub(r"[^\w.-]", "_", source.name)
    place = str(source.folder.resolve())
    of_source = hash_json([place, config.data.split, settings])[:12]
    return _root(config) / f"{name}-{of_source}", settings, reading


def _open_index(
    config: RunConfig, source: Source, encoder: SampleEncoder, show: ShowProgress | None
) -> SourceIndex:
    folder, settings, reading = _place(config, source, encoder)
    parser = reading.of_source.parser
    index = _load_if_fresh(folder, source, parser, settings)
    if index is not None:
        return index
    try:
        folder.mkdir(parents=True, exist_ok=True)
        index = one_builds(
            folder / "lock",
            folder / _METADATA_FILE,
            load=partial(_load_if_fresh, folder, source, parser, settings),
            build=partial(_build, folder, source, settings, reading, show),
        )
    except OSError as error:
        raise DataError(
            f"{folder}: the index cannot be written: {error}; fix that and run the same command "
            "again to continue, or choose another data.index_dir"
        ) from None
    if index is None:
        raise DataError(f"{source.folder}: the shards changed while they were indexed")
    return index


def _settings(config: RunConfig, source: Source, reading: ShardReading) -> dict[str, Any]:
    """All that decides the rows of an index, beside the shards. JSON values only."""
    field_map = reading.of_source.parser.field_map
    data = config.data
    pools = fingerprint(load_prompt_pools(data.prompt_pools, data.num_prompt_wordings))
    return {
        "format_version": FORMAT_VERSION,
        "template": reading.encoder.template_settings() | {"prompt pools": pools},
        "prompts": source.settings.prompts,
        "field_map": None if field_map is None else _plain(vars(field_map)),
        "excluded": sorted(reading.of_source.excluded),
        "image_formats": readable_formats(),
        "data.max_image_megapixels": reading.of_source.max_megapixels,
        "data.num_video_frames": reading.of_source.max_frames,
    }


def _shard_list(source: Source) -> list[list]:
    return [[shard_name(source, shard), *_state(shard)] for shard in source.shards]


def _state(shard: Path) -> tuple[int, int]:
    """Size and modification time; of a link to nowhere, which reading rejects, none."""
    try:
        stat = shard.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _build(
    folder: Path,
    source: Source,
    settings: dict[str, Any],
    reading: ShardReading,
    show: ShowProgress | None,
) -> None:
    from nvlm.data.index.build import Shard  # pyarrow, which an index that is there does not need

    shard_list = _shard_list(source)
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    shards = [
        Shard(
            path, stated[0], stated[1], parts / f"{path.stem[:40]}-{hash_json(stated)[:12]}.parquet"
        )
        for path, stated in zip(source.shards, shard_list, strict=True)
    ]
    beside = folder / f"columns-{os.uname().nodename}-{os.getpid()}.tmp"
    try:
        joined = _join_whole_parts(source, shards, reading, beside, show)
        columns = f"columns-{joined['content_hash'][:12]}"
        shutil.rmtree(folder / columns, ignore_errors=True)
        beside.rename(folder / columns)
        # Where people look for it.
        shutil.copyfile(folder / columns / REJECTED_FILE, folder / REJECTED_FILE)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    # For every `stage.max_num_tiles` with as many digits in its tags.
    lengths = reading.encoder.tag_lengths(MAX_NUM_TILES)
    metadata = {
        "settings": settings,
        "shards": shard_list,
        "tag_lengths": [[*grid, tokens] for grid, tokens in lengths.items()],
        "columns": columns,
        **joined,
    }
    write_text(folder / _METADATA_FILE, json.dumps(metadata))
    _remove_stale(folder, columns, {shard.part for shard in shards})


def _join_whole_parts(
    source: Source,
    shards: list[Shard],
    reading: ShardReading,
    beside: Path,
    show: ShowProgress | None,
) -> dict:
    """Build what parts are missing and join all; a damaged one is rebuilt, once."""
    from nvlm.data.index.build import build_parts
    from nvlm.data.index.join import DamagedPartError, join_parts

    damaged: set[Path] = set()
    while True:
        build_parts(source.name, shards, reading, show)
        try:
            return join_parts(shards, beside)
        except DamagedPartError as error:
            part = error.shard.part
            if part in damaged:
                raise DataError(f"{part}: is damaged as soon as it is written: {error}") from None
            damaged.add(part)
            say(f"{part}: is damaged and is rebuilt: {error}", sys.stderr)
            part.unlink()
            shutil.rmtree(beside)


def _remove_stale(folder: Path, columns: str, parts: set[Path]) -> None:
    """Parts of shards that changed or are gone, and columns joined before."""
    for part in (folder / "parts").iterdir():
        if part not in parts:
            part.unlink()
    for old in folder.glob("columns-*"):
        if old.name != columns:
            shutil.rmtree(old)


def _load_if_fresh(
    folder: Path,
    source: Source,
    parser: SampleParser,
    settings: dict[str, Any],
    say_damage: bool = False,
) -> SourceIndex | None:
    """The index, or None where it is missing, of other shards or settings, or damaged."""
    try:
        text = (folder / _METADATA_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        damage: Exception = error
    else:
        try:
            metadata = json.loads(text)
            if metadata["settings"] != settings or metadata["shards"] != _shard_list(source):
                return None
            return SourceIndex(source, parser, folder, metadata)
        except _DAMAGE as error:
            damage = error
    if say_damage:
        say(f"{folder}: the index is damaged and is rebuilt: {damage}", sys.stderr)
    return None


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))
