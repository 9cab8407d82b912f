"""Optimizer state that each data-parallel rank writes and reads where it is.

What is wrong: of Megatron-core 0.16.1's forms of the distributed optimizer's state, only
`fully_reshardable` can be read at other tensor- and pipeline-parallel sizes (`dp_reshardable` names
buckets; `fully_sharded_model_space` needs flattened ranges, which this version refuses). To write
it, every data-parallel rank gathers the state of all of them, on the device (for each of the three
kinds, all of a buffer two times over) and then on the host (all kinds of it); its memory-efficient
way needs process groups that an optimizer made with `pg_collection` cannot have. To read it, every
rank reads all parameters whole. And where a buffer has several buckets, their state is joined
without the padding between them and cut by positions that count it: written shifted.
What is done: a rank's share of a parameter is a range of its elements in order, which is a few
boxes of the tensor. They are written, and read into, as pieces of the tensor that
`fully_reshardable` writes whole, so that checkpoints of either kind are read alike. Nothing is
gathered or copied, and no position in a buffer is looked at.
When the pin moves: `sharded_param_state_fully_reshardable`, its counterpart for loading, and
whether a form that is both parallel and independent of the layout has come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor
    from megatron.core.optimizer import MegatronOptimizer
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_KINDS = ("param", "exp_avg", "exp_avg_sq")
Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


def keep_own_shares(optimizer: MegatronOptimizer) -> None:
    """Let `optimizer` hand its own share to a checkpoint, and take it from one."""
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner.sharded_param_state_fully_reshardable = partial(_sharded_state, inner)
        inner.load_parameter_state_from_fully_reshardable = partial(_load_state, inner)


def _sharded_state(
    optimizer: DistributedOptimizer, model_sharded_state_dict: ShardedStateDict, *_: Any
) -> dict[int, dict[str, ShardedTensor]]:
    """Number of a parameter of this rank -> kind and number of a piece -> it, a view of the state.

    The arguments left out are whether this is for loading, which makes no difference, and metadata.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values

    entries = {id(entry.data): entry for entry in nested_values(model_sharded_state_dict)}
    state = {}
    for number, (parameter, first, last) in enumerate(_own_ranges(optimizer)):
        tensors = optimizer._get_main_param_and_optimizer_states(parameter)
        state[number] = {
            f"{kind}.{index}": piece
            for kind in _KINDS
            for index, piece in enumerate(
                _pieces(kind, tensors[kind], entries[id(parameter)], first, last)
            )
        }
    return state


def _load_state(optimizer: DistributedOptimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Put what was read in its place, unless it was read into it.

    It was not where setting the optimizer's counters gave its state another place.
    """
    for number, (parameter, _, _) in enumerate(_own_ranges(optimizer)):
        tensors = optimizer._get_main_param_and_optimizer_states(parameter)
        for kind in _KINDS:
            target, position = tensors[kind].detach(), 0
            for key, piece in state[number].items():
                if key.startswith(f"{kind}."):
                    place = target[position : position + piece.numel()]
                    if place.data_ptr() != piece.data_ptr():
                        place.copy_(piece.reshape(-1))
                    position += piece.numel()
            assert position == target.numel(), (kind, position, target.shape)


def _own_ranges(optimizer: DistributedOptimizer) -> Iterator[tuple[Tensor, int, int]]:
    """Parameters of which this rank updates a part, and the part's first and last + 1 element."""
    for buckets_by_type in optimizer.gbuf_ranges:
        for buckets in buckets_by_type.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, ranges["param"].start, ranges["param"].end


def _pieces(kind: str, values: Tensor, entry: Any, first: int, last: int) -> Iterable:
    """Elements `first` to `last` of a parameter, whose `values` are given, as sharded tensors.

    Args:
        entry: the parameter in the model's sharded state; a SwiGLU's is made of two parts.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    is_factory = isinstance(entry, ShardedTensorFactory)
    start = entry.data.storage_offset()
    position = 0
    for part in entry.build() if is_factory else [entry]:
        begin = part.data.storage_offset() - start  # parts are contiguous, one after the other
        for offsets, sizes in boxes(
            tuple(part.local_shape), max(0, first - begin), min(part.data.numel(), last - begin)
        ):
            num_stacked = part.prepend_axis_num
            stacked, within = (
                part.global_offset[:num_stacked],
                part.global_offset[num_stacked:],
            )
            shape = (1,) * num_stacked + sizes
            yield ShardedTensor(
                key=f"optimizer.state.{kind}.{part.key}",
                data=values[position : position + prod(sizes)].view(shape),
                dtype=values.dtype,
                local_shape=shape,
                global_shape=part.global_shape,
                global_offset=(*stacked, *(a + b for a, b in zip(within, offsets, strict=True))),
                axis_fragmentations=None,  # no regular grid
                # Data ranks hold no copies: pipeline stages and tensor ranks do.
                replica_id=(*part.replica_id[:2], 0),
            )
            position += prod(sizes)
    assert position == last - first == values.numel(), (kind, entry)


def boxes(shape: tuple[int, ...], first: int, last: int) -> Iterator[Box]:
    """The boxes that elements `first` to `last` (exclusive) of a row-major tensor make up.

    They come in the order of the elements, at most two for each axis but one for the last.
    """
    if first >= last:
        return
    if len(shape) == 1:
        yield (first,), (last - first,)
        return
    row_size = prod(shape[1:])
    (row, begin), (last_row, end) = divmod(first, row_size), divmod(last, row_size)
    if begin or row == last_row:
        row_end = end if row == last_row else row_size
        for offsets, sizes in boxes(shape[1:], begin, row_end):
            yield (row, *offsets), (1, *sizes)
        if row == last_row:
            return
        row += 1
    if row < last_row:
        yield (row, *[0] * len(shape[1:])), (last_row - row, *shape[1:])
    for offsets, sizes in boxes(shape[1:], 0, end):
        yield (last_row, *offsets), (1, *sizes)
