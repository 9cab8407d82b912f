"""Folders that Hugging Face's `datasets` saved with `save_to_disk`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nvlm.data.importers.formats import ImportOptions
from nvlm.data.importers.records import Keys, Record, Reject
from nvlm.data.importers.rows import IMAGE_COLUMNS, check_columns, id_column, row_to_record
from nvlm.data.sample import SampleError
from nvlm.errors import DataError


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
        except (OSError, ValueError) as error:
            raise DataError(f"{source}: not a folder of `save_to_disk`: {error}") from None
        if isinstance(data, datasets.DatasetDict):
            if options.split not in data:
                splits = ", ".join(map(str, data))
                raise DataError(f"{source} has no split {options.split}, only {splits}")
            data = data[options.split]
        check_columns(data.column_names, source)
        for name, feature in data.features.items():
            if name in IMAGE_COLUMNS:
                data = data.cast_column(name, _undecoded(feature, datasets))
        self.files = sorted(path for path in source.rglob("*") if path.is_file())
        self._data = data
        self._folder = options.images or source
        self._per_unit = options.samples_per_shard
        self._keys = list(_make_keys(data))
        self.num_samples: int | None = len(data)
        self.num_units = -(-len(data) // self._per_unit)

    def read(self, unit: int) -> Iterator[Record | Reject]:
        start = unit * self._per_unit
        for number in range(start, min(start + self._per_unit, len(self._data))):
            key = self._keys[number]
            try:
                if isinstance(key, SampleError):
                    raise key
                yield row_to_record(key, self._data[number], Path(self._folder))
            except SampleError as error:
                yield Reject(f"row {number}", error.reason, error.detail)


def _undecoded(feature, datasets):
    """The same feature with images as they are stored, not opened."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return type(feature)(_undecoded(feature.feature, datasets))
    return feature


def _make_keys(data) -> Iterator[str | SampleError]:
    keys = Keys()
    column = id_column(data.column_names)
    if column is None:
        for number in range(len(data)):
            yield keys.make(None, number, None)
        return
    images = [name for name in IMAGE_COLUMNS if name in data.column_names]
    for number, row in enumerate(data.remove_columns(images)):
        try:
            yield keys.make(row[column], number, row)
        except SampleError as error:
            yield error


def open_source(options: ImportOptions) -> DatasetReader:
    return DatasetReader(options)
