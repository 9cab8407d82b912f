"""Checkpoints' stacks of what only some of a decoder's layers have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor

from nvlm.config.schema import ModelConfig
from nvlm.rows import Parameter
from nvlm.sizes.parameters import parameter_table


def uneven_rows(model: ModelConfig) -> dict[str, Parameter]:
    """Key -> row, of the parameters that some of the layers have."""
    return {row.key: row for row in parameter_table(model) if row.layer_numbers is not None}


def stacked_without_holes(entries: dict[str, Any], rows: Mapping[str, Parameter]) -> dict[str, Any]:
    """A sharded state dict in which what only some layers have is numbered by itself.

    Checkpoints stack layers, and Megatron-core numbers them over the whole decoder: where a layer
    has no such tensor the stack would have a hole, which no checkpoint may have.

    Args:
        rows: `uneven_rows` of the model.
    """
    return {name: _without_holes(entry, rows) for name, entry in entries.items()}


def _without_holes(entry: Any, rows: Mapping[str, Parameter]) -> Any:
    row = rows.get(entry.key) if isinstance(entry, ShardedTensor) else None
    if row is None or row.layer_numbers is None or entry.global_shape[0] == row.num_layers:
        return entry
    index, num_layers = row.layer_numbers.index(entry.global_offset[0]), len(row.layer_numbers)
    return replace(
        entry,
        global_shape=(num_layers, *entry.global_shape[1:]),
        global_offset=(index, *entry.global_offset[1:]),
        axis_fragmentations=(num_layers, *(entry.axis_fragmentations or ())[1:]),
    )
