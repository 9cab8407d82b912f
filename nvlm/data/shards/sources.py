"""Where a run's samples lie: its sources, their settings and their shards.

`ROOT/SPLIT/NAME/*.tar` is one source per folder; `ROOT/SPLIT/*.tar` is one source named after the
split. `data.blend` chooses among them and says where others lie. A folder that Energon has prepared
(energon.py) gives the shards of its own split `data.split`. Folders are looked at, never written
to. This file imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from nvlm.config import RunConfig
from nvlm.config.changed import changed_section
from nvlm.config.schema import SourceConfig
from nvlm.data.shards.energon import is_prepared, prepared_shards
from nvlm.data.shards.splits import USUAL_SPLITS, meant_split, split_of_file
from nvlm.errors import DataError

_IMPORTED = "import.json"
_LEFT_BY_IMPORTS = {_IMPORTED, "rejected.jsonl"}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Source:
    """One source of a run."""

    name: str
    settings: SourceConfig
    folder: Path  # that holds the shards, or the only shard
    shards: list[Path]  # in order


def find_sources(config: RunConfig) -> dict[str, Source]:
    """The run's sources by name, sorted.

    Raises:
        DataError: there are no shards, or the blend names a source that has none.
    """
    folder = Path(config.data.root) / config.data.split
    if config.data.blend is not None:
        sources = {
            name: _find(config, folder, name, settings)
            for name, (_, settings) in sorted(flatten_blend(config.data.blend).items())
        }
        missing = [source for source in sources.values() if not source.shards]
        if missing:
            others = ", ".join(source.name for source in missing[1:])
            also = f"; nor have these sources any shards: {others}" if others else ""
            raise DataError(f"data.blend: {_nothing(config, folder, missing[0])}{also}")
        return sources
    found = _found_below(folder, config.data.split)
    if not found:
        raise DataError(
            f"data.root {config.data.root}: no .tar files under {folder} (expected "
            f"{folder}/SOURCE/*.tar); `nvlm data build-demo {config.data.root}` makes some"
        )
    return {
        name: Source(name, SourceConfig(), found[name], list_shards(found[name], config.data.split))
        for name in sorted(found)
    }


def find_all_sources(config: RunConfig) -> dict[str, Source]:
    """Every source below `data.root`/`data.split` by name, sorted: what an evaluation asks.

    A source of the blend has the blend's settings, if its path or its name is found there; others
    are read as they would be without a blend.

    Raises:
        DataError: there are no shards, or a folder has only compressed ones.
    """
    root = Path(config.data.root)
    folder = root / config.data.split
    found: dict[str, Source] = {}
    blend = flatten_blend(config.data.blend) if config.data.blend else {}
    for name, (_, settings) in sorted(blend.items()):
        # An absolute path replaces what comes before it.
        place = os.path.abspath(folder / (settings.path or name))
        if Path(place).is_relative_to(os.path.abspath(folder)):
            source = _find(config, folder, name, settings)
            if source.shards:
                found[name] = source
    taken = {shard.resolve() for source in found.values() for shard in source.shards}
    for name, below in _found_below(folder, config.data.split).items():
        shards = [s for s in list_shards(below, config.data.split) if s.resolve() not in taken]
        if not shards:
            continue
        if name in found:  # by its path, so this folder is another source
            name, settings = f"{name} (folder)", SourceConfig()
        else:
            settings = blend[name][1] if name in blend else SourceConfig()
        found[name] = Source(name, settings, below, shards)
    _refuse_compressed(folder, found)
    if not found:
        if not root.is_dir():
            raise DataError(f"{root}: {'is a file' if root.exists() else 'no such folder'}")
        splits = sorted(p.name for p in root.iterdir() if p.is_dir())
        has = f"; {root} has {', '.join(splits[:8]) or 'no folders'}"
        raise DataError(
            f"{folder}: no .tar files there or one folder below{has}; `nvlm data import ... "
            f"{root} --split {config.data.split}` writes some"
        )
    return dict(sorted(found.items()))


def flatten_blend(
    blend: dict[str, float | SourceConfig],
    share: float = 1.0,
    above: SourceConfig | None = None,
) -> dict[str, tuple[float, SourceConfig]]:
    """Source -> (share of all draws, settings) of a blend whose entries may be blends.

    Shares sum to `share`. A source takes over what it leaves open from the blends above it:
    `max_num_tiles`, `prompts` and `max_epochs`; `loss_weight` multiplies; paths are joined.

    Raises:
        DataError: two sources have one name.
    """
    weights = {
        name: entry.weight if isinstance(entry, SourceConfig) else float(entry)
        for name, entry in blend.items()
    }
    total = sum(weights.values())
    leaves: dict[str, tuple[float, SourceConfig]] = {}
    for name, entry in blend.items():
        own = entry if isinstance(entry, SourceConfig) else SourceConfig()
        settings = own if above is None else _inherit(name, own, above)
        own_share = share * weights[name] / total
        if own.blend is None:
            below = {name: (own_share, settings)}
        else:
            below = flatten_blend(own.blend, own_share, settings)
        for leaf, value in below.items():
            if leaf in leaves:
                raise DataError(
                    f"data.blend: source {leaf!r} appears twice; give one of them another name, "
                    "and a path"
                )
            leaves[leaf] = value
    return leaves


def list_shards(folder: Path, split: str) -> list[Path]:
    """The shards of a folder, in order, or the one shard that `folder` is.

    Raises:
        DataError: some are of another split by their names.
    """
    if folder.is_file():
        return [folder]
    if is_prepared(folder):
        return prepared_shards(folder, split)
    shards = sorted(folder.glob("*.tar"))
    if not (folder / _IMPORTED).is_file():  # whose shards are called like their source
        _check_splits(folder, shards, split)
    return shards


def _check_splits(folder: Path, shards: list[Path], split: str) -> None:
    """Raise `DataError` if some of a folder's shards are of another split by their names."""
    if meant_split(split) not in USUAL_SPLITS:
        return
    splits = [split_of_file(PurePath(shard.name), split) for shard in shards]
    others = [shard.name for shard, s in zip(shards, splits, strict=True) if s in USUAL_SPLITS]
    others = [name for name in others if split_of_file(PurePath(name), split) != meant_split(split)]
    if others:
        raise DataError(
            f"{folder}: {len(others):,} of its {len(shards):,} shards are not of data.split "
            f"{split} by their names, such as {others[0]}; move them to another folder, or name "
            "them otherwise if they are meant"
        )


def unread_files(folder: Path, shards: list[Path]) -> list[Path]:
    """Files beside a source's shards that are none, and not what an import leaves there."""
    names = {shard.name for shard in shards}
    found = [path for path in folder.iterdir() if path.name not in names | _LEFT_BY_IMPORTS]
    if is_prepared(folder) or any(path.suffix == ".tar" for path in found):
        return []  # its settings, or the source's path, choose among the shards
    return sorted(path for path in found if not path.is_dir())


def _inherit(name: str, own: SourceConfig, above: SourceConfig) -> SourceConfig:
    path = own.path
    if above.path is not None and (path is None or not Path(path).is_absolute()):
        below = "" if path is None and own.blend is not None else path or name
        path = str(Path(above.path) / below)
    return changed_section(
        own,
        {
            "path": path,
            "max_num_tiles": own.max_num_tiles or above.max_num_tiles,
            "prompts": own.prompts or above.prompts,
            "max_epochs": own.max_epochs or above.max_epochs,
            "loss_weight": own.loss_weight * above.loss_weight,
        },
        where=f"data.blend: {name} with the settings of the blend that holds it",
    )


def _find(config: RunConfig, split_folder: Path, name: str, settings: SourceConfig) -> Source:
    # An absolute path replaces what comes before it.
    folder = split_folder / (settings.path or name)
    if settings.path is None and name == config.data.split and not folder.is_dir():
        folder = split_folder
    if folder.is_file() and folder.suffix in (".yaml", ".yml", ".json"):
        raise DataError(
            f"data.blend: source {name!r}: its path {folder} is a file of settings: name a folder "
            "of shards or a .tar; what a Metadataset of Energon's blends is written in data.blend"
        )
    shards = list_shards(folder, config.data.split) if folder.exists() else []
    return Source(name, settings, folder, shards)


def _refuse_compressed(folder: Path, found: dict[str, Source]) -> None:
    """Raise `DataError` where a folder would be passed over because its shards are compressed."""
    read = {source.folder for source in found.values()}
    below = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    for place in [folder, *below]:
        if place in read or not place.is_dir() or place.name.startswith("."):
            continue
        for path in place.iterdir():
            if path.name.endswith(_COMPRESSED):
                raise DataError(
                    f"{place} has compressed shards such as {path.name}; samples are read by their "
                    "place in the file, so unpack the compression first, or import them with "
                    "--format webdataset"
                )


def _nothing(config: RunConfig, split_folder: Path, source: Source) -> str:
    name, folder = source.name, source.folder
    if folder.is_dir():
        compressed = sorted(p.name for p in folder.iterdir() if p.name.endswith(_COMPRESSED))
        if compressed:
            return (
                f"source {name!r}: {folder} has compressed shards such as {compressed[0]}; samples "
                "are read by their place in the file, so unpack the compression first"
            )
    if source.settings.path is not None:
        what = "has no .tar files" if folder.exists() else "does not exist"
        return f"source {name!r}: its path {folder} {what}"
    found = ", ".join(_found_below(split_folder, config.data.split)) or "none"
    return f"no source {name!r} under {split_folder}, which has {found}"


def _found_below(folder: Path, split: str) -> dict[str, Path]:
    """Source -> its folder, for a folder of sources."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    if any(folder.glob("*.tar")):
        found[split] = folder
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if child.name.startswith("."):
            continue  # an import that is not complete
        if is_prepared(child) or any(child.glob("*.tar")):
            found[child.name] = child
    return found
