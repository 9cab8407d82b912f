"""A checkpoint seen as Hugging Face tensors: names, shapes, and rows read on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nvlm.convert.blocks import Buffer, row_blocks
from nvlm.convert.megatron.entries import in_file_order, is_stack, source_rows
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.convert.rules import Rule, to_hugging_face
from nvlm.errors import ConvertError
from nvlm.rows import Place, is_adapter
from nvlm.sizes.alignment import LEVELS_KEY
from nvlm.sizes.tile_tags import KEY as TILE_TAGS_KEY


@dataclass(frozen=True)
class _Origin:
    """Where a Hugging Face tensor is; `rows` of the Megatron-core tensor if that is a stack."""

    rule: Rule
    place: Place
    shape: tuple[int, ...]
    rows: tuple[int, int] | None


class CheckpointTensors:
    """The tensors that `rules` make of a checkpoint, under their Hugging Face names.

    Raises:
        CheckpointError: the checkpoint's table of contents is not readable.
        ConvertError: tensors are missing there or of another shape.
    """

    def __init__(self, checkpoint: Path, rules: Sequence[Rule]):
        self.path = checkpoint
        self._reader = CheckpointReader(checkpoint)
        if any(map(is_adapter, self._reader.keys())):
            raise ConvertError(
                f"{checkpoint}: has adapters beside its matrices: put them in first (`nvlm convert "
                f"merge {checkpoint} OUT`) and use OUT; `nvlm convert adapters` writes them alone"
            )
        if TILE_TAGS_KEY in self._reader:
            raise ConvertError(
                f"{checkpoint}: has learned tile tags (stage.tile_tags soft), which no Hugging "
                "Face folder has; it can be used with `nvlm generate`, `serve` and `evaluate`"
            )
        if LEVELS_KEY in self._reader:
            raise ConvertError(
                f"{checkpoint}: has levels of alignment (stage.alignment), which no Hugging Face "
                "folder has; it can be used with `nvlm generate`, `serve` and `evaluate`"
            )
        self._check_shapes(rules)
        self._origins = {
            name: origin
            for rule, place in in_file_order(rules)
            for name, origin in zip(rule.names(place), _origins(rule, place), strict=True)
        }
        self._rows = Buffer()
        # What was split last: the tensors of one rule are asked for one after the other.
        self._whole = Buffer()
        self._split_key: tuple[str, Place] | None = None
        self._split: dict[str, Tensor] = {}

    def names(self) -> list[str]:
        return list(self._origins)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._origins[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._reader.dtype(self._origins[name].rule.key)

    def row_blocks(self, name: str) -> list[tuple[int, int]]:
        """The ranges of rows to read one after the other: none reads a stored piece twice."""
        origin = self._origins[name]
        if origin.rows is None:
            return [(0, origin.shape[0])]
        first, last = origin.rows
        blocks = self._reader.row_blocks(origin.rule.parameter, origin.place, first, last)
        return _merged([(start - first, stop - first) for start, stop in blocks], self, name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the first axis; valid until the next call.

        Raises:
            CheckpointError: the checkpoint is damaged.
            ConvertError: a value is NaN or infinite, or stored heads that should be zero are not.
        """
        origin = self._origins[name]
        rule, place = origin.rule, origin.place
        if origin.rows is not None:
            first = origin.rows[0]
            rows = (first + start, first + stop)
            return self._reader.read(rule.parameter, place, *rows, self._rows)
        if self._split_key != (rule.key, place):
            self._split_key, self._split = None, {}
            whole = self._reader.read(rule.parameter, place, 0, rule.shape[0], self._whole)
            self._split = to_hugging_face(rule, place, whole)
            self._split_key = (rule.key, place)
        return self._split[name][start:stop]

    def _check_shapes(self, rules: Sequence[Rule]) -> None:
        problems = []
        for rule in rules:
            expected = (*rule.parameter.stack_shape, *rule.shape)
            if rule.key not in self._reader:
                problems.append(f"{rule.key} {list(expected)} is missing")
            elif self._reader.shape(rule.key) != expected:
                problems.append(
                    f"{rule.key} is {list(self._reader.shape(rule.key))}, expected {list(expected)}"
                )
        if problems:
            raise ConvertError(f"{self.path}: tensors do not fit its config: {'; '.join(problems)}")


def _origins(rule: Rule, place: Place) -> list[_Origin]:
    if is_stack(rule):
        return [
            _Origin(rule, place, rule.sources[name], (first, last))
            for name, first, last in source_rows(rule)
        ]
    return [_Origin(rule, place, shape, None) for shape in rule.sources.values()]


def _merged(
    blocks: list[tuple[int, int]], tensors: CheckpointTensors, name: str
) -> list[tuple[int, int]]:
    """Neighbouring blocks joined while they stay small: a checkpoint's pieces can be tiny."""
    most = row_blocks(tensors.shape(name), tensors.dtype(name))[0][1]
    merged: list[tuple[int, int]] = []
    for start, stop in blocks:
        if merged and stop - merged[-1][0] <= most:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
