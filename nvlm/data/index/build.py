"""Building an index: shards are read once each, by several processes, into parts that are joined.

A part is a parquet file with the rows of one shard; it is valid for the shard's name, size and
modification time and for all settings that decide its rows. Parts are written beside and renamed,
so an interrupted build goes on where it was, and added shards are the only ones read. Joining
copies the parts' columns one after another into files that are mapped into memory
(source_index.py). Memory is bounded by a shard, not by the source.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvlm.data.index.column_types import LIST_COLUMNS, hash_key
from nvlm.data.index.reading import Reading, ShardReading, read_shard
from nvlm.data.index.stored import ReadSample
from nvlm.data.samples.kinds import Sample
from nvlm.data.text.encode import SampleEncoder
from nvlm.files import written_beside
from nvlm.workers import map_forked

# Samples whose texts are tokenised together; bounds the texts held in memory.
_NUM_SAMPLES_PER_BATCH = 1024

_TYPES = {np.uint16: pa.string(), np.float32: pa.float32()}
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("key_hash", pa.uint64()),
        ("task", pa.string()),
        ("kind", pa.string()),
        ("num_frames", pa.int64()),
        ("loss_weight", pa.float32()),
    ]
    + [
        (name, pa.list_(_TYPES.get(dtype, pa.int64())))
        for columns in LIST_COLUMNS.values()
        for name, dtype in columns.items()
    ]
)
PART_KEY = b"nvlm"


@dataclass(frozen=True)
class BuildProgress:
    """How far the building of a source's index is."""

    source: str
    num_shards: int
    num_shards_done: int
    num_bytes: int  # of all shards to read
    num_bytes_done: int
    num_samples: int  # read so far
    num_rejected: int
    seconds: float


ShowProgress = Callable[[BuildProgress], None]


@dataclass(frozen=True)
class Shard:
    """A shard and the place of its part."""

    path: Path
    name: str  # relative to the source's folder
    num_bytes: int
    part: Path


def build_parts(
    source: str, shards: list[Shard], reading: ShardReading, show: ShowProgress | None
) -> None:
    """Write the parts that are missing."""
    missing = [shard for shard in shards if not shard.part.is_file()]
    num_bytes = sum(shard.num_bytes for shard in missing)
    num_processes = min(len(os.sched_getaffinity(0)), len(missing))
    start = time.monotonic()
    done_bytes = num_samples = num_rejected = 0
    if num_processes > 1:
        # The processes are forked, and the tokenizer's own threads do not survive that.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    who = f"{shards[0].part.parent}: a process that indexed shards" if shards else ""
    build = partial(build_part, reading=reading)
    with closing(map_forked(build, missing, num_processes, who)) as built:
        for num_done, (shard, counts) in enumerate(built, 1):
            done_bytes += shard.num_bytes
            num_samples += counts[0]
            num_rejected += counts[1]
            if show is not None:
                seconds = time.monotonic() - start
                show(
                    BuildProgress(
                        source, len(missing), num_done, num_bytes, done_bytes, num_samples,
                        num_rejected, seconds,
                    )
                )  # fmt: skip


class _NoPandas:
    """Finds modules before all others do, and of these says that they are not there."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "pandas":
            raise ImportError(name, name=name)


def keep_pandas_away() -> None:
    """Where pandas is installed, pyarrow imports it with the first value that it converts, to see
    whether the value is of pandas: a third of a second in each process, for nothing here.

    It looks once. What is to become pandas' own later imports it after all.
    """
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _NoPandas)  # type: ignore[arg-type]
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_NoPandas)  # type: ignore[arg-type]


def build_part(shard: Shard, reading: ShardReading) -> tuple[int, int]:
    """Write a shard's part. Returns its samples and its rejected ones."""
    keep_pandas_away()
    rejected: list[tuple[str, str, str]] = []
    num_samples = 0
    readings = read_shard(shard.path, shard.name, reading.of_source)
    with (
        written_beside(shard.part) as beside,
        pq.ParquetWriter(beside, _SCHEMA, compression="zstd") as writer,
    ):
        while batch := list(islice(readings, _NUM_SAMPLES_PER_BATCH)):
            rejected += [
                (read.key, read.problem.reason, read.problem.detail)
                for read in batch
                if read.problem is not None
            ]
            columns = _measure(batch, reading.encoder)
            if columns["key"]:
                writer.write_table(pa.table(columns, schema=_SCHEMA))
            num_samples += len(columns["key"])
        writer.add_key_value_metadata({PART_KEY: json.dumps(rejected)})
    return num_samples, len(rejected)


def _measure(batch: list[Reading], encoder: SampleEncoder) -> dict[str, list]:
    """The columns of the samples that can be used."""
    columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
    samples: list[Sample] = []
    for reading in batch:
        if reading.sample is not None:
            samples.append(reading.sample.sample)
            for name, value in _values(reading.key, reading.sample).items():
                columns[name].append(value)
    for sample, lengths in zip(samples, encoder.measure(samples), strict=True):
        columns["lead_single"].append(lengths.leads_single)
        columns["lead_multiple"].append(lengths.leads_multiple)
        columns["turn_tokens"].append(lengths.turn_tokens)
        columns["turn_images"].append(lengths.turn_images)
        columns["turn_trained"].append(lengths.turn_trained)
        columns["choice_tokens"].append(lengths.variant_tokens)
        columns["choice_trained"].append(lengths.variant_trained)
        has_variants = len(lengths.variant_tokens) > 0
        weights = sample.weights or [1.0] * len(lengths.variant_tokens)
        columns["choice_weight"].append(weights if has_variants else [])
    return columns


def _values(key: str, read: ReadSample) -> dict[str, Any]:
    """A sample's values in the columns that need no tokenizer."""
    sample, images = read.sample, read.images
    return {
        "key": key,
        "key_hash": hash_key(key),
        "task": sample.task,
        "kind": sample.kind,
        "num_frames": read.num_frames,
        "loss_weight": sample.loss_weight,
        "text_member": list(read.texts),
        "text_offset": [where.offset for where in read.texts.values()],
        "text_size": [where.size for where in read.texts.values()],
        "image_offset": [where.offset for where in images],
        "image_size": [where.size for where in images],
        "image_width": [width for width, _ in read.sizes],
        "image_height": [height for _, height in read.sizes],
    }
