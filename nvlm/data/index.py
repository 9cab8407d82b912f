"""The index: for every sample of a source its byte ranges, image sizes and text lengths.

Built in one pass over tar headers, JSON members and image headers (no image is decoded), and kept
as one parquet file per source. From it the order, the lengths and the packs of a whole run follow
without touching the shards. An index is valid for a list of shards (names, sizes, modification
times) and for the tokenizer and template whose lengths it holds; otherwise it is built anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.data.encode import SampleEncoder, TagLengths
from nvlm.data.image import HEADER_BYTES, read_image_size
from nvlm.data.sample import (
    ByteRange,
    Messages,
    SampleError,
    ShardReader,
    StoredSample,
    find_sources,
    parse_sample,
    scan_shard,
)
from nvlm.errors import DataError

FORMAT_VERSION = 1
# Tags measured ahead, so that an index serves every `stage.max_num_tiles` up to this.
MAX_TILES_MEASURED = 128
# Samples whose texts are tokenised together; bounds the texts held in memory.
_NUM_SAMPLES_PER_BATCH = 1024

_INT_LIST = pa.list_(pa.int64())
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("task", pa.string()),
        ("shard", pa.int32()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("num_text_tokens", pa.int64()),
        ("image_offset", _INT_LIST),
        ("image_size", _INT_LIST),
        ("image_width", _INT_LIST),
        ("image_height", _INT_LIST),
        ("lead_single", _INT_LIST),
        ("lead_multiple", _INT_LIST),
    ]
)
_IMAGE_COLUMNS = [field.name for field in _SCHEMA if field.type == _INT_LIST]
# Paths and modification times are no part of the content: moved or copied data resumes.
_METADATA_KEY = b"nvlm"

# Called with the source's name, its shards done and its shards in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SourceIndex:
    """A source in memory: n samples, m images; sample i has images `image_starts[i]` up to
    `image_starts[i + 1]`."""

    source: str
    shards: list[Path]
    keys: list[str]
    tasks: list[str]
    shard: NDArray[np.int32]  # [n]; index into `shards`
    json_offset: NDArray[np.int64]  # [n]
    json_size: NDArray[np.int64]  # [n]
    num_text_tokens: NDArray[np.int64]  # [n]; see `encode.TextLengths`
    image_starts: NDArray[np.int64]  # [n + 1]
    image_offset: NDArray[np.int64]  # [m]
    image_size: NDArray[np.int64]  # [m]; bytes
    image_width: NDArray[np.int64]  # [m]; pixels
    image_height: NDArray[np.int64]  # [m]; pixels
    lead_single: NDArray[np.int64]  # [m]; see `encode.TextLengths`
    lead_multiple: NDArray[np.int64]  # [m]
    tag_lengths: TagLengths
    template: dict
    rejected: list[SkippedSample]
    # Hash of everything that decides which samples there are and what they are planned as.
    content_hash: str

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_images(self) -> int:
        return len(self.image_width)

    def json_range(self, row: int) -> ByteRange:
        return ByteRange(int(self.json_offset[row]), int(self.json_size[row]))

    def image_ranges(self, row: int) -> list[ByteRange]:
        images = range(self.image_starts[row], self.image_starts[row + 1])
        return [ByteRange(int(self.image_offset[i]), int(self.image_size[i])) for i in images]

    def key(self, row: int) -> str:
        return self.keys[row]

    def task(self, row: int) -> str:
        return self.tasks[row]

    def shard_path(self, row: int) -> Path:
        return self.shards[self.shard[row]]


def open_indexes(
    config: RunConfig, encoder: SampleEncoder | None = None, progress: Progress | None = None
) -> list[SourceIndex]:
    """The indexes of the run's sources, sorted by name; missing and stale ones are built.

    Raises:
        DataError: there are no shards, the blend names an unknown source, or the tokenizer is
            missing. Broken shards and samples are no error: they are in `SourceIndex.rejected`.
    """
    sources = find_sources(config)
    encoder = encoder or SampleEncoder.from_config(config)
    folder = Path(config.data.index_dir or Path(config.run.dir) / "index")
    folder.mkdir(parents=True, exist_ok=True)
    indexes = []
    for source, shards in sources.items():
        path = folder / _file_name(config, source, encoder.template_settings())
        index = _load_if_fresh(path, source, shards, encoder)
        if index is None:
            # All processes of a run come here at once: one builds, the others wait and load.
            with FileLock(f"{path}.lock"):
                index = _load_if_fresh(path, source, shards, encoder)
                if index is None:
                    _build(path, source, shards, encoder, progress)
                    index = _load_if_fresh(path, source, shards, encoder)
            if index is None:
                raise DataError(f"{shards[0].parent}: the shards changed while they were indexed")
        indexes.append(index)
    return indexes


def build_indexes_with_progress(config: RunConfig) -> list[SourceIndex]:
    """`nvlm data index`: build what is missing, with progress bars, and print what there is."""
    from rich.console import Console
    from rich.progress import Progress as ProgressBars
    from rich.table import Table

    console = Console()
    with ProgressBars(console=console, transient=True) as bars:
        tasks: dict[str, int] = {}

        def show(source: str, num_done: int, num_shards: int) -> None:
            if source not in tasks:
                tasks[source] = bars.add_task(f"indexing {source}", total=num_shards)
            bars.update(tasks[source], completed=num_done)  # type: ignore[arg-type]

        indexes = open_indexes(config, progress=show)
    table = Table("source", "shards", "samples", "images", "text tokens", "rejected")
    for index in indexes:
        num_tokens = index.num_text_tokens.sum() + index.lead_single.sum()
        numbers = [len(index.shards), len(index), index.num_images, num_tokens, len(index.rejected)]
        table.add_row(index.source, *(f"{number:,}" for number in numbers))
    console.print(table)
    for rejected in (r for index in indexes for r in index.rejected):
        console.print(
            f"rejected {rejected.source} {rejected.shard} {rejected.key or '(shard)'}: "
            f"{rejected.reason}: {rejected.detail}",
            markup=False,
            highlight=False,
        )
    return indexes


def _file_name(config: RunConfig, source: str, template: dict) -> str:
    place = [str(Path(config.data.root).resolve()), config.data.split, source]
    return f"{config.data.split}-{source}-{_hash([*place, template])[:12]}.parquet"


def _shard_list(shards: Sequence[Path]) -> list[list]:
    stats = [shard.stat() for shard in shards]
    return [[p.name, stat.st_size, stat.st_mtime_ns] for p, stat in zip(shards, stats, strict=True)]


def _build(
    path: Path,
    source: str,
    shards: list[Path],
    encoder: SampleEncoder,
    progress: Progress | None,
) -> None:
    shard_list = _shard_list(shards)
    rejected: list[SkippedSample] = []
    content = hashlib.sha256()
    beside = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(beside, _SCHEMA, compression="zstd") as writer:
            for number, shard in enumerate(shards):
                if progress is not None:
                    progress(source, number, len(shards))
                for rows in _index_shard(source, number, shard, encoder, rejected):
                    writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
                    content.update(json.dumps([shard.name, rows], sort_keys=True).encode())
            metadata = {
                "format_version": FORMAT_VERSION,
                "template": encoder.template_settings(),
                "shards": shard_list,
                "tag_lengths": vars(encoder.tag_lengths(MAX_TILES_MEASURED)),
                "rejected": [vars(r) for r in rejected],
                "content_hash": content.hexdigest(),
            }
            writer.add_key_value_metadata({_METADATA_KEY: json.dumps(metadata).encode()})
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    if progress is not None:
        progress(source, len(shards), len(shards))


def _index_shard(
    source: str,
    number: int,
    shard: Path,
    encoder: SampleEncoder,
    rejected: list[SkippedSample],
):
    """Yields lists of rows; what cannot be used is appended to `rejected`."""
    stored_samples, damage = scan_shard(shard)
    with ShardReader() as reader:
        for start in range(0, len(stored_samples), _NUM_SAMPLES_PER_BATCH):
            rows: list[dict] = []
            conversations: list[Messages] = []
            for stored in stored_samples[start : start + _NUM_SAMPLES_PER_BATCH]:
                try:
                    row, messages = _read_row(reader, str(shard), stored)
                except SampleError as error:
                    rejected.append(
                        SkippedSample(source, shard.name, stored.key, error.reason, error.detail)
                    )
                    continue
                rows.append(row | {"shard": number})
                conversations.append(messages)
            for row, lengths in zip(rows, encoder.measure(conversations), strict=True):
                row["num_text_tokens"] = lengths.num_text_tokens
                row["lead_single"] = lengths.leads_single
                row["lead_multiple"] = lengths.leads_multiple
            yield rows
    if damage is not None:
        rejected.append(SkippedSample(source, shard.name, "", damage.reason, damage.detail))


def _read_row(reader: ShardReader, shard: str, stored: StoredSample) -> tuple[dict, Messages]:
    stored.check_complete()
    assert stored.json is not None
    messages, task = parse_sample(reader.read(shard, stored.json), len(stored.images))
    images = [stored.images[i] for i in range(len(stored.images))]
    sizes = [_read_size(reader, shard, image) for image in images]
    row = {
        "key": stored.key,
        "task": task,
        "json_offset": stored.json.offset,
        "json_size": stored.json.size,
        "image_offset": [image.offset for image in images],
        "image_size": [image.size for image in images],
        "image_width": [width for width, _ in sizes],
        "image_height": [height for _, height in sizes],
    }
    return row, messages


def _read_size(reader: ShardReader, shard: str, image: ByteRange) -> tuple[int, int]:
    if image.size > HEADER_BYTES:
        try:
            return read_image_size(reader.read(shard, ByteRange(image.offset, HEADER_BYTES)))
        except SampleError:
            pass  # a long header (a colour profile, say): the whole file decides
    return read_image_size(reader.read(shard, image))


def _load_if_fresh(
    path: Path, source: str, shards: list[Path], encoder: SampleEncoder
) -> SourceIndex | None:
    try:
        table = pq.ParquetFile(path)
        metadata = json.loads((table.metadata.metadata or {})[_METADATA_KEY])
        fresh = (
            metadata["format_version"] == FORMAT_VERSION
            and metadata["template"] == encoder.template_settings()
            and metadata["shards"] == _shard_list(shards)
        )
        if not fresh:
            return None
        columns = table.read().combine_chunks()
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None  # missing, or not whole: build it

    num_images = pa.compute.list_value_length(columns["image_width"]).to_numpy().astype(np.int64)
    arrays = {
        name: pa.compute.list_flatten(columns[name]).to_numpy().astype(np.int64)
        for name in _IMAGE_COLUMNS
    }
    for name in ("shard", "json_offset", "json_size", "num_text_tokens"):
        arrays[name] = columns[name].to_numpy()
    return SourceIndex(
        source=source,
        shards=shards,
        keys=columns["key"].to_pylist(),
        tasks=columns["task"].to_pylist(),
        image_starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(num_images)]),
        tag_lengths=TagLengths(**metadata["tag_lengths"]),
        template=metadata["template"],
        rejected=[SkippedSample(**r) for r in metadata["rejected"]],
        content_hash=metadata["content_hash"],
        **arrays,
    )


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
