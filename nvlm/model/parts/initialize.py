"""Random weights as a pure function of (seed, key, layer): the same at every process layout.

Each global tensor is drawn from a generator of its own, a block of rows at a time, by one rank of
the pipeline stage for all of them. What a tensor begins as is in the table of parameters
(`nvlm.sizes.parameters`), by Megatron's rules: normal, layers that write to the residual stream
scaled down by sqrt(2 x layers), norms one, biases zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain, zip_longest
from math import gcd, prod
from typing import Protocol, cast

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import Tensor, nn

from nvlm.checkpoint_shares import sharded_tensors, shares
from nvlm.config.schema import RunConfig
from nvlm.model.parts.adapters import measure_rows
from nvlm.parallel.groups import Parallel
from nvlm.rows import Constant, Normal, Parameter, Place, RowNorms
from nvlm.sizes.adapters import run_parameters_by_key

# Numbers that are drawn at a time: 16 MB.
BLOCK_SIZE = 2**22
# torch draws normal numbers in groups of so many.
_DRAWN_TOGETHER = 16


class _Placed(Protocol):
    """A part of the model that knows which processes have the others."""

    parallel: Parallel

    def sharded_state_dict(self) -> dict: ...


@dataclass(frozen=True)
class _Whole:
    """A global tensor, of one place, and what this rank holds of it: a SwiGLU's rows are two."""

    row: Parameter
    place: Place
    held: list[ShardedTensor]

    @property
    def data(self) -> Tensor:
        data = self.held[0].data
        assert data is not None
        return data

    def fill(self, first: int, rows: Tensor) -> None:
        """Write what this rank holds of `rows`, which begin at row `first`."""
        for shard in self.held:
            assert shard.data is not None
            slices = shard.global_slice()[shard.prepend_axis_num :]
            start, stop = max(first, slices[0].start), min(first + len(rows), slices[0].stop)
            if start < stop:
                local = shard.data[start - slices[0].start : stop - slices[0].start]
                local.copy_(rows[(slice(start - first, stop - first), *slices[1:])])


@torch.no_grad()
def initialize_weights(model: _Placed, config: RunConfig, pattern: str = "*") -> None:
    """Fill this rank's parameters whose sharded key matches the fnmatch `pattern`.

    Keys are those in `model.sharded_state_dict()`: `vision_projection.mlp.linear_fc1.weight`, ...
    Every rank of the pipeline stage calls this; each draws as many numbers as the others.
    """
    table = run_parameters_by_key(config)
    held: dict[tuple[str, Place], list[ShardedTensor]] = {}
    for shard in sharded_tensors(model.sharded_state_dict()):
        if fnmatchcase(shard.key, pattern):
            row = table[shard.key]
            assert (*row.stack_shape, *row.shape) == shard.global_shape, shard
            place = row.place(shard.global_offset[: shard.prepend_axis_num])
            held.setdefault((shard.key, place), []).append(shard)
    tensors = [_Whole(table[key], place, shards) for (key, place), shards in held.items()]
    for whole in tensors:
        if isinstance(whole.row.initial, Constant):
            whole.fill(0, initial_tensor(config.train.seed, whole.row, whole.place))
    random = [whole for whole in tensors if isinstance(whole.row.initial, Normal)]
    groups = model.parallel.groups
    # Who holds what alike, or parts of it: the tensor- and data-parallel ranks of the stage, and of
    # an expert those that have it.
    _draw([t for t in random if t.place.expert is None], config.train.seed, groups.tp_dp_cp)
    _draw([t for t in random if t.place.expert is not None], config.train.seed, groups.expt_dp)
    if any(isinstance(whole.row.initial, RowNorms) for whole in tensors):
        measure_rows(cast("nn.Module", model))


def _draw(tensors: Sequence[_Whole], seed: int, group: dist.ProcessGroup) -> None:
    """Fill `tensors`: in each round every rank draws a block, and sends it to the others."""
    drawers = shares([whole.row.size for whole in tensors], group.size())
    plans: list[list[tuple[_Whole, int, int]]] = [[] for _ in range(group.size())]
    for whole, rank in zip(tensors, drawers, strict=True):
        plans[rank] += [(whole, start, stop) for start, stop in _blocks(whole.row.shape)]
    mine = (t for t, rank in zip(tensors, drawers, strict=True) if rank == group.rank())
    drawn = chain.from_iterable(_drawn_blocks(seed, t.row, t.place) for t in mine)
    for blocks in zip_longest(*plans):
        own = next(drawn) if blocks[group.rank()] else None
        for rank, block in enumerate(blocks):
            if block is None:
                continue
            whole, start, stop = block
            if own is not None and rank == group.rank():
                rows = own.to(whole.data.device, whole.data.dtype)
            else:
                rows = whole.data.new_empty(stop - start, *whole.row.shape[1:])
            if group.size() > 1:
                # As bytes, which every backend sends.
                sender = dist.get_global_rank(group, rank)
                dist.broadcast(rows.view(-1).view(torch.uint8), src=sender, group=group)
            whole.fill(start, rows)


def initial_tensor(seed: int, parameter: Parameter, place: Place) -> Tensor:
    """The whole fp32 tensor that `parameter` begins as, whatever rank asks."""
    if isinstance(parameter.initial, Constant):
        tensor = torch.full(parameter.shape, parameter.initial.value)
        if parameter.zero_heads is not None:
            parameter.zero_heads.of(tensor).zero_()
        return tensor
    return torch.cat([*_drawn_blocks(seed, parameter, place)])


def _drawn_blocks(seed: int, parameter: Parameter, place: Place) -> Iterator[Tensor]:
    """The rows of a random tensor, fp32: the numbers that drawing it at once would give."""
    assert isinstance(parameter.initial, Normal)
    generator, zero_heads = _generator(seed, parameter.key, place), parameter.zero_heads
    for start, stop in _blocks(parameter.shape):
        rows = torch.empty(stop - start, *parameter.shape[1:])
        rows.normal_(0, parameter.initial.deviation, generator=generator)
        if zero_heads is not None and zero_heads.axis == 0:
            rows[max(0, zero_heads.first - start) :].zero_()
        elif zero_heads is not None:
            zero_heads.of(rows).zero_()
        yield rows


def _blocks(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of rows that are drawn one after the other.

    All but the last end where torch's groups do. It draws the last, incomplete one together with
    the numbers before it, so that the last block has a group at least.
    """
    row_size = prod(shape[1:])
    step = _DRAWN_TOGETHER // gcd(_DRAWN_TOGETHER, row_size)
    length = max(1, BLOCK_SIZE // row_size // step) * step
    starts = list(range(0, shape[0], length))
    if len(starts) > 1 and (shape[0] - starts[-1]) * row_size < _DRAWN_TOGETHER:
        starts.pop()
    return list(zip(starts, [*starts[1:], shape[0]], strict=True))


def _generator(seed: int, key: str, place: Place) -> torch.Generator:
    name = f"{seed}:{key}:{place.layer}"
    if place.expert is not None:
        name += f":{place.expert}"
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
