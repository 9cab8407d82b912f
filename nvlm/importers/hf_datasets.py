"""Folders that Hugging Face's `datasets` saved with `save_to_disk`.

Read as the tables they are: images stay as they are stored, and no other column is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.splits import meant_split
from nvlm.errors import DataError
from nvlm.importers.formats import ImportOptions
from nvlm.importers.records import Keys, Record, Reject
from nvlm.importers.rows import (
    BATCH_ROWS,
    check_columns,
    has_bytes,
    id_column,
    make_row_keys,
    read_records,
)
from nvlm.importers.source_files import check_split_of_source


class DatasetReader:
    def __init__(self, options: ImportOptions):
        try:
            import datasets
        except ModuleNotFoundError:
            raise DataError(
                "--format hf-datasets needs the library datasets: pip install 'nvlm[datasets]'"
            ) from None
        source = options.source
        try:
            data = datasets.load_from_disk(str(source))
        # `datasets` does not check the files that `save_to_disk` writes; damaged ones raise any of
        # these.
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{source}: not a folder of `save_to_disk`: {type(error).__name__}: {error}"
            ) from None
        if isinstance(data, datasets.DatasetDict):
            split = _find_split(options, [str(name) for name in data])
            left = [f"{name} ({len(data[name]):,} rows)" for name in data if name != split]
            self.notes = [f"took the split {split}, left {', '.join(left)}"] if left else []
            data = data[split]
        else:
            self.notes = check_split_of_source(options)
        self._data = data.with_format("arrow")
        self.files = sorted(path for path in source.rglob("*") if path.is_file())
        self._folder = options.file_folder(source)
        self._per_unit = options.samples_per_shard
        self.num_samples: int | None = len(data)
        self.num_units = -(-len(data) // self._per_unit)
        schema = self._data.features.arrow_schema
        check_columns(schema, source)
        self._keys = list(self._make_keys(schema))

    def _make_keys(self, schema: pa.Schema) -> Iterator[str | SampleError]:
        keys = Keys()
        column = id_column(schema.names)
        if column is None:
            for number in range(len(self._data)):
                yield keys.make(None, number, None)
            return
        simple = [field.name for field in schema if not has_bytes(field.type)]
        texts = self._data.select_columns(sorted({column, *simple}))
        batches = (texts[start : start + 1024] for start in range(0, len(texts), 1024))
        yield from make_row_keys(batches, column, keys, 0)

    def read(self, unit: int) -> Iterator[Record | Reject]:
        first = unit * self._per_unit
        stop = min(first + self._per_unit, len(self._data))
        for start in range(first, stop, BATCH_ROWS):
            batch = self._data[start : min(start + BATCH_ROWS, stop)]
            yield from read_records(batch, self._keys, start, self._folder, "")


def _find_split(options: ImportOptions, names: list[str]) -> str:
    wanted = options.from_split or options.split
    meant = [name for name in names if meant_split(name) == meant_split(wanted)]
    if wanted not in names and len(meant) != 1:
        raise DataError(
            f"{options.source} has no split {wanted}, only {', '.join(names)}; say which to take: "
            + ", ".join(f"--from-split {name}" for name in names)
        )
    return wanted if wanted in names else meant[0]


def open_source(options: ImportOptions) -> DatasetReader:
    return DatasetReader(options)
