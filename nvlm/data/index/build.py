"""Building an index: shards are read once each, by several processes, into parts that are joined.

A part is a parquet file with the rows of one shard; it is valid for the shard's name, size and
modification time and for all settings that decide its rows. Parts are written beside and renamed,
so an interrupted build goes on where it was, and added shards are the only ones read. Joining
copies the parts' columns one after another into files that are mapped into memory
(source_index.py). Memory is bounded by a shard, not by the source.
"""

from __future__ import annotations

import hashlib
import json
import os
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

from nvlm.data.index.reading import Reading, SourceReading, read_shard
from nvlm.data.index.stored import ReadSample
from nvlm.data.samples.kinds import Sample
from nvlm.data.text.encode import SampleEncoder
from nvlm.files import written_beside
from nvlm.workers import map_forked

# Samples whose texts are tokenised together; bounds the texts held in memory.
_NUM_SAMPLES_PER_BATCH = 1024

# Columns with one value per sample, and per group of columns those with a list per sample.
SAMPLE_COLUMNS = {
    "key_hash": np.uint64,
    "shard": np.int32,
    "task_number": np.int32,
    "kind_number": np.uint8,
    "num_frames": np.uint16,
    "loss_weight": np.float32,
}
LIST_COLUMNS = {
    "text": {"text_member": np.uint16, "text_offset": np.int64, "text_size": np.int32},
    "image": {
        "image_offset": np.int64,
        "image_size": np.int64,  # bytes
        "image_width": np.int32,  # pixels
        "image_height": np.int32,
        "lead_single": np.int32,  # tokens; see encode.TextLengths
        "lead_multiple": np.int32,
    },
    "turn": {"turn_tokens": np.int32, "turn_images": np.int32, "turn_trained": np.int32},
    "choice": {  # variants (kinds.py), by the name that they have in index files
        "choice_tokens": np.int32,
        "choice_weight": np.float32,
        "choice_trained": np.int32,
    },
}
# For statistics: no sample is chosen or planned by these.
STATISTICS_COLUMNS = ("turn_trained", "choice_trained", "loss_weight")
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
class ShardReading:
    """What decides the rows of a shard, beside its content."""

    encoder: SampleEncoder
    of_source: SourceReading


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


def build_part(shard: Shard, reading: ShardReading) -> tuple[int, int]:
    """Write a shard's part. Returns its samples and its rejected ones."""
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


def hash_key(key: str) -> int:
    """64 bits of a sample's key, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
