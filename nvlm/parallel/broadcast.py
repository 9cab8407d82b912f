"""What processes of a model replica read of a step reaches the others here.

One process reads the text side of a micro-batch, which is small and goes to the whole replica.
Tiles are large. That process reads them too, and they go only to the first pipeline stage, where
the vision encoder is: to all of a tensor-parallel group, of which each context-parallel rank has
one, with a share of the tiles. Where every process
has one (`parallel.vision: tile_parallel`), each reads those that it encodes, and they go nowhere.
A whole step is exchanged before its schedule starts, so no collective of the data path can meet one
of the pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import torch
import torch.distributed as dist

from nvlm import phases, platform
from nvlm.batch import Findings, StepBatch, StepPart, TileShare, WholeStep
from nvlm.errors import DataError
from nvlm.failures import explain
from nvlm.parallel.context import with_parts
from nvlm.parallel.groups import Parallel, broadcast_object
from nvlm.parallel.tiles import own_share, share_sizes, without_dropped

Item = TypeVar("Item")


def next_step_batch(
    loader: Iterator[StepBatch] | Iterator[StepPart] | None, parallel: Parallel, shares_tiles: bool
) -> StepBatch | None:
    """The next step's batch on this process's device; None when the data has ended.

    Args:
        loader: of `StepPart`, on every process, where `shares_tiles`; else of `StepBatch`, and
            ignored on all but the model-parallel main process.
        shares_tiles: every process of the model-parallel group has its share of the step's tiles
            (`parallel.vision: tile_parallel`), not the first stage all of them.

    Raises:
        DataError: this process could not read; the others of its replica wait until they end.
    """
    device = platform.current().device()
    if shares_tiles:
        part = _next(loader)
        assert part is None or isinstance(part, StepPart)
        return part and _put_together(part, parallel, device)
    phases.enter(phases.SHARING)
    step = _next(loader) if parallel.is_model_parallel_main else None
    assert step is None or isinstance(step, StepBatch)
    tiles = _tiles(step) if step else []
    if dist.get_world_size(parallel.groups.mp) == parallel.context_size == 1:
        return step and _on_device(step, tiles, device)
    text = step and replace(
        step,
        micro_batches=[micro_batch.without_tiles() for micro_batch in step.micro_batches],
        tiles_ahead=None,
    )
    shapes = [tuple(t.shape) for t in tiles]
    text, shapes = _to_replica((text, shapes), parallel)
    if text is None:
        return None
    micro_batches = with_parts(text.micro_batches, [shape[0] for shape in shapes], parallel)
    text = replace(text, micro_batches=micro_batches)
    if parallel.is_first_stage:
        tiles = [tile.to(device, non_blocking=True).contiguous() for tile in tiles]
        tiles = _own_tiles(tiles, shapes, parallel, device)
    else:
        tiles = [m.tiles for m in text.micro_batches]
    return _on_device(text, tiles, device)


def _to_replica(value: Item, parallel: Parallel) -> Item:
    """What the model-parallel main process has, on all of its replica."""
    groups = parallel.groups
    if parallel.context_size > 1 and parallel.tensor_rank == parallel.pipeline_rank == 0:
        value = broadcast_object(value, dist.get_global_rank(groups.cp, 0), groups.cp)
    return broadcast_object(value, dist.get_global_rank(groups.mp, 0), groups.mp)


def _own_tiles(
    tiles: list[torch.Tensor], shapes: list[tuple], parallel: Parallel, device: torch.device
) -> list[torch.Tensor]:
    """Of each micro-batch those that this context-parallel rank encodes.

    Args:
        tiles: all of them, on the model-parallel main process.
        shapes: theirs, on every process of the first stage.
    """
    groups, own, size = parallel.groups, parallel.context_rank, parallel.context_size
    found = []
    for number, (num_tiles, *shape) in enumerate(shapes):
        sizes = share_sizes(num_tiles, size)
        if parallel.is_model_parallel_main:
            mine, *others = tiles[number].split(sizes)
            # A view would keep the tiles of all.
            mine = mine.clone() if others else mine
            for rank, others_tiles in enumerate(others, 1):
                if others_tiles.numel():
                    dist.send(others_tiles, dist.get_global_rank(groups.cp, rank), groups.cp)
        else:
            mine = torch.empty(sizes[own], *shape, dtype=torch.uint8, device=device)
            if mine.numel() and parallel.tensor_rank == 0:
                dist.recv(mine, dist.get_global_rank(groups.cp, 0), groups.cp)
        if mine.numel() and parallel.tensor_size > 1:
            dist.broadcast(mine, dist.get_global_rank(groups.tp, 0), groups.tp)
        found.append(mine)
    return found


def _next(loader: Iterator[Item] | None) -> Item | None:
    assert loader is not None, "this process reads data"
    phases.enter(phases.READING)
    started = time.perf_counter()
    try:
        item = next(loader, None)
    except Exception as error:
        failure = explain(error)
        if failure is None or isinstance(error, DataError):
            raise
        raise DataError(failure) from error
    phases.add_reading(time.perf_counter() - started)
    phases.enter(phases.SHARING)
    return item


def _tiles(step: StepBatch) -> list[torch.Tensor]:
    if step.tiles_ahead is not None:
        return [arriving() for arriving in step.tiles_ahead]
    return [micro_batch.tiles for micro_batch in step.micro_batches]


def _put_together(part: StepPart, parallel: Parallel, device: torch.device) -> StepBatch:
    """The step whose parts the replica's processes have read; each keeps its tiles.

    A sample of which one process could not read an image is left out by all of them.
    """
    group, num_planned = parallel.groups.mp, part.findings.num_tiles
    whole: WholeStep | None = None
    if dist.get_world_size(group) == 1:
        assert part.assemble is not None
        whole = part.assemble([part.findings])
    else:
        main = dist.get_global_rank(group, 0)
        found: list[Findings] | None = None
        if parallel.is_model_parallel_main:
            found = [part.findings] * dist.get_world_size(group)
        dist.gather_object(part.findings, found, dst=main, group=group)
        if found is not None:
            assert part.assemble is not None
            whole = part.assemble(found)
        whole = broadcast_object(whole, main, group)
        assert whole is not None
    planned = part.tiles if isinstance(part.tiles, torch.Tensor) else part.tiles()
    tiles, sizes = without_dropped(planned, num_planned, whole.dropped, own_share(parallel))
    share = TileShare(tiles.to(device, non_blocking=True), whole.num_tiles, sizes)
    none = [micro_batch.tiles for micro_batch in whole.step.micro_batches]
    return replace(_on_device(whole.step, none, device), tile_share=share)


def _on_device(step: StepBatch, tiles: list[torch.Tensor], device: torch.device) -> StepBatch:
    """All copies of the step are under way when this returns; the device waits for them in turn."""
    micro_batches = [
        replace(micro_batch, tiles=t)
        .each(lambda tensor: platform.current().pinned(tensor))
        .to(device)
        for micro_batch, t in zip(step.micro_batches, tiles, strict=True)
    ]
    return replace(step, micro_batches=micro_batches, tiles_ahead=None)
