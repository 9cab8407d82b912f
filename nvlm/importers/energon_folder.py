"""Folders prepared for Megatron-Energon: the shards of one split, by the folder's field map."""

from __future__ import annotations

from nvlm.data.shards.energon import excluded_samples, is_prepared, prepared_shards, read_field_map
from nvlm.errors import DataError
from nvlm.importers.formats import ImportOptions
from nvlm.importers.webdataset_tars import TarReader


def open_source(options: ImportOptions) -> TarReader:
    folder = options.source
    if not is_prepared(folder):
        raise DataError(
            f"{folder} has no folder .nv-meta, which `energon prepare` makes; plain tars are "
            "imported with --format webdataset"
        )
    shards = prepared_shards(folder, options.from_split or options.split)
    beside = sum(path.suffix == ".tar" for path in folder.rglob("*")) - len(shards)
    notes = [f"left {beside:,} tars of other splits, as .nv-meta says"] if beside > 0 else []
    return TarReader(shards, read_field_map(folder), excluded_samples(folder), notes)
