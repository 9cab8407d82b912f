"""Hugging Face folders: their tensors, and writing new ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nvlm.errors import ConvertError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Problems of one kind that an error lists before it says how many more there are.
_MOST_LISTED = 20

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class HfFolder:
    """A folder with `config.json` and safetensors, read one tensor at a time.

    Raises:
        ConvertError: the folder, its configuration or its weights are missing or not readable.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise ConvertError(f"{path}: no such folder")
        self.config = _read_json(self.path / CONFIG_FILE)
        self._files = {name: self.path / file for name, file in self._locate_tensors().items()}
        self._opened: dict[Path, Any] = {}
        if self.config.get("tie_word_embeddings") and "lm_head.weight" not in self._files:
            # Tied in the source; for training with an output layer of its own.
            self._tied = {"lm_head.weight": "model.embed_tokens.weight"}
        else:
            self._tied = {}

    def names(self) -> list[str]:
        return [*self._files, *self._tied]

    def shape(self, name: str) -> tuple[int, ...]:
        name = self._tied.get(name, name)
        return tuple(self._open(self._files[name]).get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU.

        Raises:
            ConvertError: it holds NaN or infinity.
        """
        name = self._tied.get(name, name)
        tensor = self._open(self._files[name]).get_tensor(name)
        if not bool(torch.isfinite(tensor).all()):
            raise ConvertError(f"{self._files[name]}: {name} holds NaN or infinite values")
        return tensor

    def check_tensors(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise `ConvertError` listing the tensors that are missing, extra or of another shape."""
        found = {name: self.shape(name) for name in self.names()}
        missing = [f"{name} {list(expected[name])}" for name in expected if name not in found]
        # The second name of a tied tensor is an offer, not a surplus.
        extra = [
            f"{name} {list(found[name])}"
            for name in found
            if name not in expected and name not in self._tied
        ]
        misshaped = [
            f"{name} is {list(found[name])}, expected {list(expected[name])}"
            for name in expected
            if name in found and found[name] != expected[name]
        ]
        problems = [
            f"{len(items)} {kind}: {_listed(items)}"
            for kind, items in {
                "missing": missing,
                "extra": extra,
                "of another shape": misshaped,
            }.items()
            if items
        ]
        if problems:
            raise ConvertError(f"{self.path}: tensors do not fit the model; {'; '.join(problems)}")

    def _locate_tensors(self) -> dict[str, str]:
        index, single = self.path / INDEX_FILE, self.path / SINGLE_FILE
        if index.is_file():
            located = _read_json(index).get("weight_map")
            if not isinstance(located, dict) or not located:
                raise ConvertError(f"{index}: has no weight_map")
            absent = sorted({file for file in located.values() if not (self.path / file).is_file()})
            if absent:
                raise ConvertError(f"{index}: names files that are missing: {_listed(absent)}")
            return located
        if not single.is_file():
            raise ConvertError(f"{self.path}: has neither {INDEX_FILE} nor {SINGLE_FILE}")
        return dict.fromkeys(self._open(single, {}).keys(), SINGLE_FILE)

    def _open(self, file: Path, opened: dict[Path, Any] | None = None) -> Any:
        opened = self._opened if opened is None else opened
        if file not in opened:
            try:
                opened[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ConvertError(f"{file}: not readable as safetensors: {error}") from None
        return opened[file]


# --------------------------------------------------------------------------------------- writing


def write_safetensors(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int,
    on_written: Callable[[], None] = lambda: None,
) -> int:
    """Write `tensors` as files of at most `shard_bytes` each and their index; returns their bytes.

    A file holds at least one tensor, however large. No more than one file's tensors are in memory.
    """
    names_per_file: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    num_bytes_pending = num_bytes = 0

    def part(number: int) -> Path:
        return folder / f"model-{number:05d}.part"

    def flush() -> None:
        nonlocal pending, num_bytes_pending
        names_per_file.append(list(pending))
        save_file(pending, part(len(names_per_file)), metadata={"format": "pt"})
        pending, num_bytes_pending = {}, 0

    for name, tensor in tensors:
        if pending and num_bytes_pending + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
        num_bytes_pending += tensor.nbytes
        num_bytes += tensor.nbytes
        on_written()
    flush()

    weight_map = {}
    for number, names in enumerate(names_per_file, start=1):
        file = f"model-{number:05d}-of-{len(names_per_file):05d}.safetensors"
        part(number).rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    for file in set(weight_map.values()):
        # safetensors makes its files readable by their owner only.
        shutil.copymode(folder / INDEX_FILE, folder / file)
    return num_bytes


def parse_size(text: str) -> int:
    """`5GB` -> 5_000_000_000 bytes.

    Raises:
        ConvertError: not a number with one of the units KB, MB, GB, TB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", text, flags=re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise ConvertError(f"shard size {text!r}: expected a number with a unit, such as 5GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConvertError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConvertError(f"{path}: expected a JSON object")
    return values


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:_MOST_LISTED])
    hidden = len(items) - _MOST_LISTED
    return f"{shown} and {hidden} more" if hidden > 0 else shown
