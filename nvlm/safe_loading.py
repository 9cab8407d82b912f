"""Checkpoints as data: what stands in their files is read, and never runs.

Three kinds of files in a checkpoint are pickles, and a pickle may name any function to be called
when it is read. `.metadata`, the table of contents, is read here by an unpickler that knows the
classes of such a table and refuses everything else by name. `common.pt` and the objects inside the
`*.distcp` files go through `torch.load`, whose `weights_only` refuses likewise; torch's checkpoint
package asks for the opposite in places, so `data_only` sets torch's own switch that overrules it.

torch's checkpoint package takes half a second to import, and a run needs it when it has something
to read or to save: functions import it themselves.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import EnumType
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import BadZipFile

import torch

from nvlm.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

METADATA_FILE = ".metadata"
COMMON_FILE = "common.pt"
# Written by Megatron-core last: which formats the other files have.
FORMAT_FILE = "metadata.json"

# Module -> what a table of contents may name in it, beside the data types of `torch`.
_ALLOWED = {
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    # Megatron-core keeps the plan that wrote the files beside the table.
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
}
# What reading a file that is cut short, or full of other bytes, raises.
DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    BadZipFile,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    MemoryError,
    OverflowError,
    AssertionError,
)
# torch's name of what `weights_only` met, once for classes and once for functions of its own.
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)|Trying to call reduce for unrecognized function (\S+)")


class _CodeInDataError(pickle.UnpicklingError):
    """A pickle names something that is no part of a table of contents."""


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        raise _CodeInDataError(f"{module}.{name}")


def _enum_member(enumeration: Any, name: Any) -> Any:
    """Python 3.11.0 to 3.11.3 (Debian 12 has 3.11.2) write an enumeration's value as `getattr` of
    its class and its name. Nothing else may be looked up.
    """
    if isinstance(enumeration, EnumType) and name in enumeration.__members__:
        return enumeration[name]
    raise _CodeInDataError("builtins.getattr")


def read_metadata(checkpoint: Path) -> Metadata:
    """A checkpoint's table of contents, found to fit the files beside it.

    Raises:
        CheckpointError: it is missing, damaged, or names code; or a file is missing or shorter than
            it says.
    """
    path = checkpoint / METADATA_FILE
    _check_is_file(path)
    try:
        with path.open("rb") as file:
            metadata = _unpickle(path, file)
        _check_table(metadata)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _StrangeTableError as error:
        raise CheckpointError(f"{path} {damaged(str(error))}") from None
    _check_files(checkpoint, metadata)
    return metadata


def check_readable(checkpoint: Path) -> None:
    """Raise `CheckpointError` where a checkpoint cannot be opened; reads no tensor."""
    path = checkpoint / FORMAT_FILE
    _check_is_file(path)
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} {damaged(one_line(error))}") from None
    if not isinstance(value, dict) or value.get("sharded_backend") != "torch_dist":
        raise CheckpointError(f"{path} {damaged('it does not say sharded_backend torch_dist')}")
    read_metadata(checkpoint)
    path = checkpoint / COMMON_FILE
    _check_is_file(path)
    try:
        common = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except DAMAGE as error:
        raise CheckpointError(f"{path} {describe_damage(error)}") from None
    if not isinstance(common, dict):
        raise CheckpointError(f"{path} {damaged(f'it holds a {type(common).__name__}')}")


@contextmanager
def data_only(checkpoint: Path) -> Iterator[None]:
    """Inside, Megatron-core's and torch's loading of `checkpoint` reads data and runs no code."""
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader

    read_table, load_bytes = FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes

    def read_table_safely(self: FileSystemReader, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        assert metadata.storage_meta is not None
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def load_bytes_safely(self: DefaultLoadPlanner, read_item: Any, value: Any) -> None:
        try:
            load_bytes(self, read_item, value)
        except DAMAGE as error:
            name = read_item.dest_index.fqn
            raise CheckpointError(
                f"{checkpoint}: its object {name} {describe_damage(error)}"
            ) from None

    with _weights_only():
        FileSystemReader.read_metadata = read_table_safely  # type: ignore[method-assign]
        DefaultLoadPlanner.load_bytes = load_bytes_safely  # type: ignore[method-assign]
        try:
            yield
        finally:
            FileSystemReader.read_metadata = read_table  # type: ignore[method-assign]
            DefaultLoadPlanner.load_bytes = load_bytes  # type: ignore[method-assign]


def describe_damage(error: BaseException) -> str:
    """One line about what reading a file raised: that it names code, or how it is damaged."""
    refused = _REFUSED_GLOBAL.search(str(error))
    if refused:
        return refuse_code(refused[1] or refused[2])
    return damaged(one_line(error) or type(error).__name__)


def damaged(detail: str) -> str:
    return f"is damaged ({detail}): copy it again, or use another checkpoint"


def refuse_code(name: str) -> str:
    return (
        f"names {name}, which is code and not data; nothing was run. A checkpoint holds only "
        "tensors and plain values: do not use this one"
    )


def one_line(error: BaseException) -> str:
    """An error's first sentence, without torch's advice to read the file as code."""
    text = " ".join(str(error).split())
    text = text.rpartition("WeightsUnpickler error: ")[2]
    text = text.removeprefix("Weights only load failed. ")
    if text.startswith("In PyTorch 2.6"):
        text = "not what torch.save writes"
    return re.split(r"\.? Check the documentation|\. ", text)[0].rstrip(".")[:200]


class _StrangeTableError(Exception):
    """A table of contents that a checkpoint writer would not write."""


def _unpickle(path: Path, file: BinaryIO) -> Any:
    try:
        return _TableUnpickler(file).load()
    except _CodeInDataError as error:
        raise CheckpointError(f"{path} {refuse_code(str(error))}") from None
    except (*DAMAGE, RecursionError) as error:
        raise CheckpointError(f"{path} {describe_damage(error)}") from None


def _check_table(metadata: Any) -> None:
    """Types of all that is used later, so that no file can raise anything else there."""
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    if not isinstance(metadata, Metadata):
        raise _StrangeTableError(f"it holds a {type(metadata).__name__}")
    try:
        entries, places = metadata.state_dict_metadata, metadata.storage_data
        is_whole = (
            isinstance(entries, dict)
            and isinstance(places, dict)
            and all(_is_entry(key, entry) for key, entry in entries.items())
            and all(_is_place(index, place) for index, place in places.items())
        )
    except (AttributeError, TypeError):
        is_whole = False
    if not is_whole:
        raise _StrangeTableError("entries are not of the expected form")
    if getattr(metadata, "storage_meta", None) is None:
        metadata.storage_meta = StorageMeta()


def _is_entry(key: Any, entry: Any) -> bool:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

    if not isinstance(key, str):
        return False
    if isinstance(entry, BytesStorageMetadata):
        return True
    return (
        isinstance(entry, TensorStorageMetadata)
        and _are_counts(entry.size)
        and isinstance(entry.properties.dtype, torch.dtype)
        and all(
            _are_counts(chunk.offsets) and _are_counts(chunk.sizes)
            and len(chunk.offsets) == len(chunk.sizes) == len(entry.size)
            for chunk in entry.chunks
        )
    )  # fmt: skip


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(v) is int and v >= 0 for v in values)


def _is_place(index: Any, place: Any) -> bool:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex

    return (
        isinstance(index, MetadataIndex)
        and isinstance(place, _StorageInfo)
        and isinstance(place.relative_path, str)
        and _are_counts((place.offset, place.length))
    )


def _check_files(checkpoint: Path, metadata: Metadata) -> None:
    ends: dict[str, int] = {}
    for place in metadata.storage_data.values():
        end = place.offset + place.length
        ends[place.relative_path] = max(end, ends.get(place.relative_path, 0))
    for name, end in sorted(ends.items()):
        if name in ("", ".", "..") or Path(name).name != name:
            raise CheckpointError(
                f"{checkpoint / METADATA_FILE}: names the file {name!r}, which is not in the "
                "checkpoint's own folder: nothing was read"
            )
        path = checkpoint / name
        _check_is_file(path)
        size = path.stat().st_size
        if size < end:
            raise CheckpointError(f"{path} {damaged(f'{size:,} of {end:,} bytes')}")


def _check_is_file(path: Path) -> None:
    """Reading a pipe or a device would wait, or never end."""
    if not path.exists():
        raise CheckpointError(f"{path} is missing: the checkpoint is not whole; use another one")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")


@contextmanager
def _weights_only() -> Iterator[None]:
    """torch's own switches: of its two, one that is set outside (as in some images) is lifted."""
    saved = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in saved.items() if value is not None})


_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORCE_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
