"""Hugging Face folders: their configuration and their tensors, a few rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from nvlm.convert.blocks import BLOCK_BYTES, Buffer, all_finite, raw_bytes, row_blocks
from nvlm.convert.hf.safetensors_file import (
    MOST_JSON_BYTES,
    TORCH_DTYPES,
    SafetensorsFile,
    parse_json,
)
from nvlm.errors import ConvertError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"

# Problems of one kind that an error lists before it says how many more there are.
_MOST_LISTED = 20


class HfFolder:
    """A folder with `config.json` and safetensors, of which no more than a block is in memory.

    Raises:
        ConvertError: the folder, its configuration or its weights are missing, not whole, not
            readable, or quantised.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            what = "is not a folder" if self.path.exists() else "no such folder"
            raise ConvertError(f"{path}: {what}")
        self.config = read_json(self.path / CONFIG_FILE)
        for part in (self.config, self.config.get("llm_config"), self.config.get("vision_config")):
            quantized = part.get("quantization_config") if isinstance(part, dict) else None
            if quantized is not None:
                method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
                raise ConvertError(
                    f"{self.path / CONFIG_FILE}: the weights are quantised (quant_method "
                    f"{method!a}): start from the folder that they were made from"
                )
        if (self.path / ADAPTER_FILE).exists():
            raise ConvertError(
                f"{self.path / ADAPTER_FILE}: transformers adds this adapter to the weights, which "
                "conversion does not: write the merged model (peft's merge_and_unload, then "
                "save_pretrained) into another folder, or take the file out"
            )
        self._files = self._open_files()
        self._check_dtypes()
        self.tied = self._tied_names()
        self._buffer = Buffer()

    def part(self, key: str) -> FolderPart:
        """The configuration of one of several models in the folder, such as `llm_config`."""
        values = self.config.get(key)
        if not isinstance(values, dict):
            raise ConvertError(f"{self.path / CONFIG_FILE}: has no {key}")
        return FolderPart(self.path, values)

    def names(self) -> list[str]:
        return [*self._files, *self.tied]

    def shape(self, name: str) -> tuple[int, ...]:
        name = self.tied.get(name, name)
        return self._files[name].entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        name = self.tied.get(name, name)
        return TORCH_DTYPES[self._files[name].entries[name].dtype]

    def read(self, name: str) -> Tensor:
        """The whole tensor.

        Raises:
            ConvertError: it holds NaN or infinity, or cannot be read.
        """
        return self._fill(torch.empty(self.shape(name), dtype=self.dtype(name)), name, 0)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the first axis; valid until the next call.

        Raises:
            ConvertError: they hold NaN or infinity, or cannot be read.
        """
        shape = (stop - start, *self.shape(name)[1:])
        return self._fill(self._buffer.take(shape, self.dtype(name)), name, start)

    def row_blocks(self, name: str) -> list[tuple[int, int]]:
        """The ranges of rows to read one after the other."""
        return row_blocks(self.shape(name), self.dtype(name))

    def check_tensors(
        self, expected: Mapping[str, tuple[int, ...]], unused: Collection[str] = ()
    ) -> None:
        """Raise `ConvertError` listing the tensors that are missing, extra or of another shape.

        `unused` may be there, and are not read.
        """
        found = {name: self.shape(name) for name in self.names()}
        missing = [f"{name} {list(expected[name])}" for name in expected if name not in found]
        # The second name of a tied tensor is an offer, not a surplus.
        extra = [
            f"{name} {list(found[name])}"
            for name in found
            if name not in expected and name not in self.tied and name not in unused
        ]
        misshaped = [
            f"{name} is {list(found[name])}, expected {list(expected[name])}"
            for name in expected
            if name in found and found[name] != expected[name]
        ]
        problems = [
            f"{len(items)} {kind}: {listed(items)}"
            for kind, items in {
                "missing": missing,
                "extra": extra,
                "of another shape": misshaped,
            }.items()
            if items
        ]
        if problems:
            raise ConvertError(f"{self.path}: tensors do not fit the model; {'; '.join(problems)}")

    def _fill(self, target: Tensor, name: str, first_row: int) -> Tensor:
        stored_name = self.tied.get(name, name)
        file = self._files[stored_name]
        bytes_per_row = prod(target.shape[1:]) * target.itemsize
        file.read_into(raw_bytes(target), file.entries[stored_name], first_row * bytes_per_row)
        if not all_finite(target):
            raise ConvertError(f"{file.path}: {name} holds NaN or infinite values")
        return target

    def _open_files(self) -> dict[str, SafetensorsFile]:
        """The file of each tensor, its header read and its size checked."""
        index, single = self.path / INDEX_FILE, self.path / SINGLE_FILE
        if not index.exists():
            if not single.exists():
                raise ConvertError(self._no_safetensors())
            file = SafetensorsFile(single)
            return dict.fromkeys(file.entries, file)
        located = read_json(index).get("weight_map")
        if not isinstance(located, dict) or not located:
            raise ConvertError(f"{index}: has no weight_map")
        strange = sorted({ascii(file) for file in located.values() if not _is_inside(file)})
        if strange:
            raise ConvertError(
                f"{index}: names files that are not in its folder: {listed(strange)}: they are not "
                "read"
            )
        absent = sorted({file for file in located.values() if not (self.path / file).is_file()})
        if absent:
            raise ConvertError(f"{index}: names files that are missing: {listed(absent)}")
        files = {file: SafetensorsFile(self.path / file) for file in sorted(set(located.values()))}
        lost = [
            f"{name} ({file})" for name, file in located.items() if name not in files[file].entries
        ]
        if lost:
            raise ConvertError(f"{index}: names tensors that their files lack: {listed(lost)}")
        if single.exists() and files.keys() != {SINGLE_FILE}:
            raise ConvertError(
                f"{self.path}: has {SINGLE_FILE} beside the files that {INDEX_FILE} names, and "
                "transformers reads only the first: take away the one that is not meant"
            )
        return {name: files[file] for name, file in located.items()}

    def _no_safetensors(self) -> str:
        message = f"{self.path}: has neither {INDEX_FILE} nor {SINGLE_FILE}"
        pickled = sorted(path.name for path in self.path.glob("pytorch_model*.bin*"))
        if pickled:
            message += (
                f", only pickled weights ({listed(pickled)}), which can run any program when they "
                "are opened and are not read here: download the same model's safetensors, or open "
                "the folder with transformers where you trust it, and write it again with "
                "`save_pretrained`, which writes safetensors"
            )
        return message

    def _check_dtypes(self) -> None:
        strange = [
            f"{name} is {file.entries[name].dtype}"
            for name, file in self._files.items()
            if file.entries[name].dtype not in TORCH_DTYPES
        ]
        if strange:
            raise ConvertError(
                f"{self.path}: {len(strange)} tensors are not of {', '.join(TORCH_DTYPES)}, "
                f"quantised perhaps: {listed(strange)}: start from weights that are not quantised"
            )

    def _tied_names(self) -> dict[str, str]:
        """Of a folder with tied embeddings, the output layer's name -> the name it is stored as.

        Raises:
            ConvertError: an output layer is stored beside the embeddings and is not equal to them.
                transformers before version 5 takes the embeddings then, later ones the layer.
        """
        prefix, values = "", self.config
        if isinstance(self.config.get("llm_config"), dict):
            prefix, values = "language_model.", self.config["llm_config"]
        embedding = f"{prefix}model.embed_tokens.weight"
        if values.get("tie_word_embeddings") is not True or embedding not in self._files:
            return {}
        output_layer = f"{prefix}lm_head.weight"
        if output_layer in self._files:
            if not self._are_equal(output_layer, embedding):
                raise ConvertError(
                    f"{self.path}: {CONFIG_FILE} says tie_word_embeddings, but {output_layer} is "
                    f"stored and is not {embedding}: set tie_word_embeddings to false there where "
                    "the model has an output layer of its own, or take the tensor out of the files"
                )
            del self._files[output_layer]
        # For training with an output layer of its own.
        return {output_layer: embedding}

    def _are_equal(self, a: str, b: str) -> bool:
        """Whether two stored tensors have the same type, shape and bytes."""
        x, y = self._files[a].entries[a], self._files[b].entries[b]
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            return False
        for first in range(0, x.num_bytes, BLOCK_BYTES):
            count = min(BLOCK_BYTES, x.num_bytes - first)
            left, right = bytearray(count), bytearray(count)
            self._files[a].read_into(memoryview(left), x, first)
            self._files[b].read_into(memoryview(right), y, first)
            if left != right:
                return False
        return True


class FolderPart:
    """The part of a folder's configuration that describes one of its models."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path = path
        self.config = config


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a folder that somebody else made.

    Raises:
        ConvertError: it is missing, no file, too large, not UTF-8, not JSON, nested too deep, says
            one key twice or a number that is none; the message says which.
    """
    try:
        if not path.exists():
            raise ConvertError(f"{path}: no such file")
        if not path.is_file():
            # A pipe or a device would be read forever.
            raise ConvertError(f"{path}: is not a regular file")
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ConvertError(f"{path}: has {path.stat().st_size:,} bytes, too many for JSON")
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, ConvertError):
            raise
        raise ConvertError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConvertError(f"{path}: expected a JSON object")
    return values


def _is_inside(name: Any) -> bool:
    """Whether an index's name of a file stays within its folder.

    What lies there may be a link: folders in the hub's cache consist of links.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def listed(items: list[str]) -> str:
    """Names, the first of them, without characters that a terminal would obey."""
    shown = ", ".join(item if item.isprintable() else ascii(item) for item in items[:_MOST_LISTED])
    hidden = len(items) - _MOST_LISTED
    return f"{shown} and {hidden} more" if hidden > 0 else shown
