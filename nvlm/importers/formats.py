"""The formats that can be imported, by name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from nvlm.errors import DataError
from nvlm.importers.image_files import FileFolder
from nvlm.importers.records import Reader

# Name -> module in this folder, which has `open_source(options) -> Reader`.
FORMATS = {
    "llava-json": "llava_json",
    "captions-folder": "captions_folder",
    "webdataset": "webdataset_tars",
    "energon": "energon_folder",
    "parquet": "parquet_files",
    "hf-datasets": "hf_datasets",
}


# What is fetched of a data set of the hub, of the formats that such data sets have.
FILES_OF_HUB = {"parquet": ("*.parquet",), "webdataset": ("*.tar", "*.tar.gz", "*.tgz")}


@dataclass(frozen=True)
class ImportOptions:
    """One import. All but `num_workers` decide what the shards hold."""

    format: str
    source: Path
    split: str = "train"
    name: str | None = None  # of the source's folder; None: like `source`
    # Folder of the image files that a text names; None: the source's.
    images: Path | None = None
    allow_outside: bool = False  # names may lead out of that folder
    # The split of the files to take; None: `split`, or a name for the same. "all": every file;
    # "none": those whose names say no split.
    from_split: str | None = None
    shard_bytes: int = 1 << 30
    samples_per_shard: int = 2000
    num_workers: int = 1
    # Where `source` was fetched from, in words; None: nowhere.
    origin: str | None = None

    def file_folder(self, default: Path) -> FileFolder:
        """Where the files lie that the source names; `default` where --images is not given."""
        return FileFolder(self.images or default, self.allow_outside)


def open_reader(options: ImportOptions) -> Reader:
    """The reader of the source.

    Raises:
        DataError: no such format, or the source is not of it.
    """
    if options.format not in FORMATS:
        raise DataError(f"--format {options.format}: expected one of {', '.join(FORMATS)}")
    if not options.source.exists():
        raise DataError(f"{options.source} does not exist")
    if options.images is not None and not options.images.is_dir():
        raise DataError(f"--images {options.images} is not a folder")
    module = importlib.import_module(f"nvlm.importers.{FORMATS[options.format]}")
    return module.open_source(options)
