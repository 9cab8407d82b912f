"""What a process writes of a sharded state, copied to the host so that training may go on at once.

What is wrong: Megatron-core 0.16.1's asynchronous writer copies to the host tensors of a device
and, of a CPU's, those that are views; of others it keeps the place, which the next step overwrites
unless a process was forked before. For each save it takes new memory, on a GPU pinned in powers of
two.
What is done: a buffer of the right size is kept, into which every save copies. What other ranks
write is left where it is, and not looked at.
When the pin moves: `FileSystemWriterAsync.prepare_write_data` and `preload_tensors`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

# Of the first byte of a tensor, so that it can be seen as one of any type.
_ALIGNMENT = 64


class Stage:
    """A place on the host for a copy of what this process writes, used again by each save."""

    def __init__(self, new_buffer: Callable[[int], Tensor]):
        """`new_buffer(NUM_BYTES)` gives bytes on the host."""
        self._new_buffer = new_buffer
        self._buffer: Tensor | None = None

    def place(
        self, sharded_state_dict: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable[[], None]]:
        """The same state, of which what this process writes is in this place once it is copied.

        Returns it, and what copies its tensors, which are where they were until then; all else is
        a copy already. What was in this place before is lost.
        """
        from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
        from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
        from megatron.core.dist_checkpointing.mapping import is_main_replica as is_written

        position = 0
        to_copy: list[tuple[ShardedTensor, Tensor, int]] = []

        def placed(entry: Any) -> Any:
            nonlocal position
            if isinstance(entry, ShardedObject):
                return replace(entry, data=copy.deepcopy(entry.data))
            if not isinstance(entry, ShardedTensor):
                return copy.deepcopy(entry)
            if not is_written(entry.replica_id):
                return entry
            assert entry.data is not None
            other = copy.copy(entry)
            to_copy.append((other, entry.data, position))
            position += -(-entry.data.nbytes // _ALIGNMENT) * _ALIGNMENT
            return other

        result = dict_list_map_outplace(placed, sharded_state_dict)
        buffer = self._fitting(position)

        def copy_all() -> None:
            for entry, values, begin in to_copy:
                place = buffer[begin : begin + values.nbytes].view(values.dtype)
                entry.data = place.view(values.shape)
                entry.data.copy_(values.detach(), non_blocking=True)

        return cast("dict[str, Any]", result), copy_all

    def _fitting(self, num_bytes: int) -> Tensor:
        if self._buffer is None or self._buffer.nbytes < num_bytes:
            self._buffer = None  # freed before the next one is taken
            self._buffer = self._new_buffer(num_bytes)
        return self._buffer


def bad_tensors(sharded_state_dict: dict[str, Any]) -> list[str]:
    """Names in checkpoints of the tensors that this process writes with a value not finite."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica

    found = []
    for entry in nested_values(sharded_state_dict):
        if not isinstance(entry, ShardedTensor) or not is_main_replica(entry.replica_id):
            continue
        data = entry.data
        assert data is not None
        if data.is_floating_point() and not torch.isfinite(data).all():
            layer = f" of layer {entry.global_offset[0]}" if entry.prepend_axis_num else ""
            found.append(f"{entry.key}{layer}")
    return found
