"""A step that a test made, in the parts that the processes of a replica would have read of it."""

from __future__ import annotations

from dataclasses import replace

import torch

from nvlm.batch import Findings, StepBatch, StepPart, WholeStep
from nvlm.parallel.groups import Parallel
from nvlm.parallel.tiles import own_share


def part_of(step: StepBatch, parallel: Parallel) -> StepPart:
    """This process's part; every process has the whole step, and nothing in it is damaged."""
    num_tiles = [micro_batch.num_tiles for micro_batch in step.micro_batches]
    share = own_share(parallel)
    start, stop = share.tiles(sum(num_tiles))
    text = replace(step, micro_batches=[m.without_tiles() for m in step.micro_batches])
    whole = WholeStep(text, num_tiles, [])
    return StepPart(
        torch.cat([m.tiles for m in step.micro_batches])[start:stop],
        Findings([], {}, sum(num_tiles)),
        (lambda _: whole) if share.number == 0 else None,
    )
