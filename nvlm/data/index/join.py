"""Joining the parts of an index: their columns one after another, in files to be mapped.

Shapes: n samples; a group of columns with lists has m values in all and `{group}_starts` [n + 1].
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nvlm.data.index.build import PART_KEY, Shard, keep_pandas_away
from nvlm.data.index.column_types import (
    COLUMN_GROUPS,
    LIST_COLUMNS,
    REJECTED_FILE,
    STATISTICS_COLUMNS,
    column_types,
)
from nvlm.data.index.columns import Column, join_columns
from nvlm.data.samples.kinds import KINDS
from nvlm.files import json_line

# Column -> its name in parts, where tasks and kinds are texts.
_COLUMNS_OF_PARTS = {
    "key_hash": "key_hash",
    "task_number": "task",
    "kind_number": "kind",
    "num_frames": "num_frames",
    "loss_weight": "loss_weight",
}


class DamagedPartError(Exception):
    """A part is not what was written; `shard` is whose."""

    def __init__(self, shard: Shard, error: Exception):
        super().__init__(str(error))
        self.shard = shard


def join_parts(shards: list[Shard], folder: Path) -> dict:
    """Write the columns of all parts to `folder`; returns what the index's metadata say of them.

    Part by part, so that memory is bounded by the largest.

    Raises:
        DamagedPartError: one is not what was written.
    """
    keep_pandas_away()
    folder.mkdir(parents=True)
    columns = {name: Column(folder, name, dtype) for name, dtype in column_types().items()}
    for group in COLUMN_GROUPS:
        columns[f"{group}_starts"].append(np.zeros(1, np.int64))
    ends = dict.fromkeys(COLUMN_GROUPS, 0)
    names: dict[str, dict[str, int]] = {"task_number": {}, "text_member": {}}
    num_rejected: Counter[str] = Counter()
    content = hashlib.sha256()
    with (folder / REJECTED_FILE).open("w") as rejected_file:
        for number, shard in enumerate(shards):
            try:
                with pq.ParquetFile(shard.part) as part:
                    table = part.read().combine_chunks()
                    all_rejected = json.loads(part.metadata.metadata[PART_KEY])
                content.update(f"{shard.name}\n".encode())
                _append(table, number, columns, ends, names, content)
                for rejected in all_rejected:
                    num_rejected[rejected[1]] += 1
                    rejected_file.write(json_line([shard.path.name, *rejected]))
            except (pa.ArrowException, KeyError, ValueError, TypeError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk's fault; damage has no number
                raise DamagedPartError(shard, error) from None
    return {
        "table": join_columns(columns, folder),
        "num_rejected_bytes": (folder / REJECTED_FILE).stat().st_size,
        "num_samples": columns["shard"].length,
        "tasks": list(names["task_number"]),
        "text_members": list(names["text_member"]),
        "num_rejected": dict(sorted(num_rejected.items())),
        "content_hash": content.hexdigest(),
    }


def _append(
    table: pa.Table,
    shard: int,
    columns: dict[str, Column],
    ends: dict[str, int],
    names: dict[str, dict[str, int]],
    content: hashlib._Hash,
) -> None:
    """Append a part's rows; `ends`, `names` and `content` go on with them."""

    def append_starts(group: str, lengths: NDArray) -> None:
        content.update(lengths.tobytes())
        starts = ends[group] + np.cumsum(lengths)
        columns[f"{group}_starts"].append(starts)
        ends[group] = int(starts[-1]) if len(starts) else ends[group]

    def append_values(name: str, values: pa.Array) -> None:
        if name in names:
            texts = values.to_pylist()
            content.update("\0".join(texts).encode())
            of_name = names[name]
            numbers = np.array([of_name.setdefault(text, len(of_name)) for text in texts], np.int64)
        elif name == "kind_number":
            numbers = np.array([KINDS.index(kind) for kind in values.to_pylist()], np.int64)
            content.update(numbers.tobytes())
        else:
            numbers = values.to_numpy(zero_copy_only=False)
            if name == "turn_trained":
                # Plans only ask which turns are not trained at all.
                content.update(np.flatnonzero(numbers == 0).tobytes())
            elif name not in STATISTICS_COLUMNS:
                content.update(numbers.tobytes())
        columns[name].append(numbers)

    columns["shard"].append(np.full(len(table), shard))
    keys = [key.encode() for key in table["key"].to_pylist()]
    columns["key_bytes"].append(np.frombuffer(b"".join(keys), np.uint8))
    content.update(b"".join(keys))
    append_starts("key", np.array([len(key) for key in keys], np.int64))
    for name, column in _COLUMNS_OF_PARTS.items():
        append_values(name, table[column].combine_chunks())
    for group, members in LIST_COLUMNS.items():
        lists = [table[name].combine_chunks() for name in members]
        append_starts(group, pa.compute.list_value_length(lists[0]).to_numpy().astype(np.int64))
        for name, values in zip(members, lists, strict=True):
            append_values(name, pa.compute.list_flatten(values))
