"""What a run leaves out of training and repairs: counted over all data ranks, and bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import reduce

import torch.distributed as dist

from nvlm.batch import SkippedSample, StepBatch
from nvlm.data.index.rejected import check_share
from nvlm.parallel.groups import Parallel


def count_skipped(skipped: Iterable[SkippedSample]) -> dict[str, int]:
    """ "SOURCE/REASON" -> samples."""
    counts = Counter(f"{sample.source}/{sample.reason}" for sample in skipped)
    return dict(sorted(counts.items()))


def add_counts(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return dict(sorted((Counter(first) + Counter(second)).items()))


def gather_skipped(batch: StepBatch, parallel: Parallel) -> list[SkippedSample]:
    """What all data ranks skipped in this step."""
    if parallel.data_size == 1:
        return list(batch.skipped)
    gathered: list = [None] * parallel.data_size
    dist.all_gather_object(gathered, batch.skipped, group=parallel.groups.dp)
    unique = dict.fromkeys(sample for skipped in gathered for sample in skipped)
    return list(unique)


def gather_repaired(batch: StepBatch, parallel: Parallel) -> dict[str, int]:
    """What all data ranks repaired in this step: "SOURCE/WHAT" -> changes."""
    gathered: list = [None] * parallel.data_size
    dist.all_gather_object(gathered, batch.repaired, group=parallel.groups.dp)
    return reduce(add_counts, gathered)


def check_run(
    skipped_by: dict[str, int], num_samples: int, max_share: float, examples: list[SkippedSample]
) -> None:
    """Raise `DataError` if too large a share of the samples drawn so far was left out.

    Args:
        skipped_by: of the whole run; see `count_skipped`.
        num_samples: trained on so far.
        max_share: `data.max_skipped_share`.
        examples: some of what was skipped lately.
    """
    num_drawn = num_samples + sum(skipped_by.values())
    check_share(skipped_by, num_drawn, max_share, examples, "were skipped")
