"""Run by test_schedule under torchrun: the order of passes that Megatron-core's schedules take.

    schedule_events FOLDER LAYOUTS

LAYOUTS is JSON: name -> overrides. Each rank writes its passes of every layout, as triples like
`nvlm.plan.schedule.Pass`, with its pipeline rank.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from helpers import small_model
from nvlm.parallel.groups import initialize, shut_down

NUM_MICRO_BATCHES = 8


def passes_of(overrides: list[str]) -> tuple[int, list[tuple[bool, int, int]]]:
    """(pipeline rank, its passes in their order) of one training step of the small model."""
    config = small_model.small_config("stage.freeze=[]", *overrides)
    parallel = initialize(config)
    chunks = small_model.build_chunks(config, parallel)
    batches = [
        small_model.batch(config, n, [40, 24], num_tiles=1) for n in range(NUM_MICRO_BATCHES)
    ]
    passes: list[tuple[bool, int, int]] = []

    def forward_step(iterator, chunk):
        number, micro_batch = next(iterator)
        place = next(at for at, one in enumerate(chunks) if one is chunk)
        passes.append((True, place, number))
        output = chunk(micro_batch)
        output.register_hook(lambda gradient: passes.append((False, place, number)))
        mask = micro_batch.loss_mask()
        return output, lambda losses: ((losses * mask).sum(), mask.sum().int(), {})

    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[enumerate(batches) for _ in chunks],
        model=chunks,
        num_microbatches=NUM_MICRO_BATCHES,
        seq_length=64,
        micro_batch_size=1,
        forward_only=False,
    )
    return parallel.pipeline_rank, passes


def main() -> None:
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    found = {name: passes_of(overrides) for name, overrides in layouts.items()}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    shut_down()


if __name__ == "__main__":
    main()
