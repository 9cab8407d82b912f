"""What the sequences of a blend hold, from the first steps of its plan: for estimates of a run."""

from __future__ import annotations

from nvlm.config import RunConfig
from nvlm.data.index.source_index import existing_indexes
from nvlm.data.order.balance import imbalance
from nvlm.data.order.draws import Pack
from nvlm.data.order.planner import Planner
from nvlm.plan.work import Work

# Sequences that are looked at, or those of the first step where it has more.
_NUM_SEQUENCES = 4096
_MAX_DATA_SIZE = 4096


def contents(config: RunConfig) -> Work | None:
    """Of the run's first sequences, on average; None where the data are not indexed.

    Nothing is built, and no shard is read.

    Raises:
        DataError: the sources, the tokenizer or a prompt pool are not there.
    """
    indexes = existing_indexes(config)
    if indexes is None:
        return None
    planner = Planner(config, indexes)
    steps: list[list[Pack]] = []
    while sum(map(len, steps)) < _NUM_SEQUENCES and len(steps) < config.train.steps:
        step = planner.next_step()
        if step is None:
            break
        steps.append(step)
    packs = [pack for step in steps for pack in step]
    length = config.stage.sequence_length
    of_packs = [pack.draws.length.tolist() for pack in packs]
    tiles = [int(pack.draws.num_tiles.sum()) for pack in packs]
    pairs = [sum(n * n for n in lengths) + (length - sum(lengths)) ** 2 for lengths in of_packs]
    costs = [[planner.cost(pack) for pack in step] for step in steps]
    num_micro_batches = config.train.global_batch_size // config.train.micro_batch_size
    return Work(
        num_tiles=sum(tiles) / len(packs),
        most_tiles=max(tiles),
        num_tokens=sum(map(sum, of_packs)) / len(packs),
        token_pairs=sum(pairs) / len(packs),
        num_samples=sum(map(len, of_packs)) / len(packs),
        source=f"the index of the blend ({len(packs):,} sequences of its first {len(steps):,} "
        "steps)",
        imbalance={
            size: sum(imbalance(step, size) for step in costs) / len(costs)
            for size in range(2, min(num_micro_batches, _MAX_DATA_SIZE) + 1)
            if num_micro_batches % size == 0
        },
    )
