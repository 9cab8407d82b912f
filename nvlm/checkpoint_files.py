"""The files of a checkpoint folder: their sizes and checksums, and what is wrong with them.

`files.json`, written last, lists every other file with its size and CRC-32: every change of up to
32 bits in a row shows, and it is the fastest checksum in Python's library (docs/experiments.md).
Folders without it, which earlier versions wrote, are checked by what else they say of themselves.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nvlm.config.compose import validate
from nvlm.config.schema import RunConfig
from nvlm.config.yaml_file import read_yaml
from nvlm.errors import CheckpointError, ConfigError, NvlmError
from nvlm.hashes import hash_json
from nvlm.parallel.agreement import MAIN_CHANNEL, Channel
from nvlm.safe_loading import FORMAT_FILE, check_readable, one_line

MANIFEST_FILE = "files.json"
CONFIG_FILE = "config.yaml"
PROGRESS_FILE = "progress.json"
ORIGINS_FILE = "origins.json"
_BLOCK_BYTES = 2**22
_MAX_THREADS = 4
_READING = "reading a checkpoint's files"

# File name -> (bytes, CRC-32 as eight hexadecimal digits).
Files = dict[str, tuple[int, str]]


def write_manifest(folder: Path, channel: Channel = MAIN_CHANNEL) -> None:
    """Note size and checksum of every file of `folder`; every rank calls this.

    A rank reads the files that it wrote (`__RANK_NUMBER.distcp`), which its host still has in
    memory; the others are small and the main rank's. All are on the disk when this returns.

    Raises:
        OSError: a rank cannot read or write; the same on every rank.
    """
    rank, world_size = _place()

    def is_mine(name: str) -> bool:
        writer = re.fullmatch(r"__(\d+)_\d+\.distcp", name)
        return (int(writer[1]) % world_size if writer else 0) == rank

    mine = [name for name in _names(folder) if is_mine(name)]
    measured: Files | OSError
    try:
        with ThreadPoolExecutor(_MAX_THREADS) as pool:
            found = pool.map(lambda name: _measure(folder / name, flush=True), mine)
            measured = dict(zip(mine, found, strict=True))
    except OSError as error:
        measured = error
    files: Files = {}
    for part in channel.gather(measured, _READING):
        if isinstance(part, OSError):
            raise part
        files |= part
    if rank == 0:
        with (folder / MANIFEST_FILE).open("w") as file:
            file.write(_render(files))
            file.flush()
            os.fsync(file.fileno())


def has_checksums(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).exists()


def content_hash(folder: Path) -> str:
    """The same for folders of the same content, SHA-256 in hexadecimal digits.

    Of the names, sizes and CRC-32s of all files. Those of a folder without `files.json` are read.

    Raises:
        CheckpointError: `files.json` is damaged.
        OSError: a file cannot be read.
    """
    files: Files | str
    if has_checksums(folder):
        files = _read_manifest(folder)
    else:
        names = _names(folder)
        with ThreadPoolExecutor(_MAX_THREADS) as pool:
            measured = pool.map(lambda name: _measure(folder / name), names)
            files = dict(zip(names, measured, strict=True))
    if isinstance(files, str):
        raise CheckpointError(f"{folder} cannot be used: {files}")
    return hash_json({name: list(entry) for name, entry in files.items()})


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as far as names, sizes and its small files tell.

    Raises:
        OSError: it cannot be looked at, which says nothing about what is in it.
    """
    if not folder.is_dir():
        return "not a folder"
    damage = _missing_or_cut(folder)
    if damage is not None:
        return damage
    try:
        read_config(folder)
        read_progress(folder)
    except NvlmError as error:
        return str(error).removeprefix(f"{folder}/")
    return None


def read_config(checkpoint: Path) -> RunConfig:
    """The configuration that the checkpoint was written with."""
    path = checkpoint / CONFIG_FILE
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise CheckpointError(f"{error}; the checkpoint is damaged: use another one") from None
    return validate(values, where=str(path))


def read_progress(checkpoint: Path) -> dict | None:
    """What a training run noted beside its weights; None for converted weights."""
    path = checkpoint / PROGRESS_FILE
    if not path.is_file():
        return None
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {one_line(error)}") from None
    _check_progress(path, progress)
    return progress


def write_origins(checkpoint: Path, origins: Mapping[str, Any]) -> None:
    """Note where converted weights came from: by part, a folder, or a repository and its commit."""
    (checkpoint / ORIGINS_FILE).write_text(json.dumps(origins, indent=2) + "\n", encoding="utf-8")


def _check_progress(path: Path, progress: Any) -> None:
    expected = {"step": int, "counters": dict, "layout": dict, "data_state": dict}
    for key, kind in expected.items():
        value = progress.get(key) if isinstance(progress, dict) else None
        if type(value) is not kind:
            raise CheckpointError(
                f"{path}: is damaged: {key} is not a {'number' if kind is int else 'mapping'}: use "
                "another checkpoint"
            )


def _missing_or_cut(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, seen from their names and sizes."""
    for name in (FORMAT_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            return f"{name} is missing"
    if not has_checksums(folder):
        try:
            check_readable(folder)
        except CheckpointError as error:
            return str(error).removeprefix(f"{folder}/")
        return None
    files = _read_manifest(folder)
    if isinstance(files, str):
        return files
    return _first(
        damage
        for name, (num_bytes, _) in files.items()
        if (damage := _compare_size(folder / name, num_bytes))
    )


def changed(folder: Path) -> str | None:
    """What is wrong with the content of a checkpoint; None: nothing, or it has no checksums.

    Every rank calls this, reads a share of the files, and gets the same answer.
    """
    rank, world_size = _place()
    damages: list[str] = []
    if has_checksums(folder):
        files = _read_manifest(folder)
        if isinstance(files, str):
            damages.append(files)
        else:
            largest_first = sorted(files, key=lambda name: (-files[name][0], name))
            mine = largest_first[rank::world_size]
            with ThreadPoolExecutor(_MAX_THREADS) as pool:
                found = pool.map(lambda name: _compare(folder / name, *files[name]), mine)
                damages += filter(None, found)
    return _first(damage for part in MAIN_CHANNEL.gather(damages, _READING) for damage in part)


def _compare(path: Path, num_bytes: int, checksum: str) -> str | None:
    try:
        found = _measure(path)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    if found[0] != num_bytes:
        return _compare_size(path, num_bytes)
    if found[1] != checksum:
        detail = f"(CRC-32 {found[1]}, not {checksum}){_advice(path)}"
        return f"{path.name} has other bytes than were written {detail}"
    return None


def _compare_size(path: Path, num_bytes: int) -> str | None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    if found == num_bytes:
        return None
    return f"{path.name} has {found:,} bytes, not {num_bytes:,}{_advice(path)}"


def _advice(path: Path) -> str:
    """People edit configurations, such as where a tokenizer is now."""
    if path.name != CONFIG_FILE:
        return ""
    return f"; if the change is yours, remove {path.with_name(MANIFEST_FILE)}"


def _read_manifest(folder: Path) -> Files | str:
    """What `files.json` lists, or what is wrong with it."""
    try:
        text = (folder / MANIFEST_FILE).read_text()
        files = {name: (entry[0], entry[1]) for name, entry in json.loads(text)["files"].items()}
        if text == _render(files):
            return files
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    return f"{MANIFEST_FILE} is damaged"


def _render(files: Files) -> str:
    listed = json.dumps({name: list(files[name]) for name in sorted(files)}, indent=0)
    return f'{{"files": {listed}, "crc32": "{zlib.crc32(listed.encode()):08x}"}}\n'


def _names(folder: Path) -> list[str]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if name != MANIFEST_FILE)


def _measure(path: Path, flush: bool = False) -> tuple[int, str]:
    checksum, num_bytes = 0, 0
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            checksum = zlib.crc32(block[:count], checksum)
            num_bytes += count
        if flush:
            os.fsync(file.fileno())
    return num_bytes, f"{checksum:08x}"


def _first(damages: Iterable[str]) -> str | None:
    found = list(damages)
    if not found:
        return None
    return found[0] + (f", and {len(found) - 1} more files" if len(found) > 1 else "")


def _place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
