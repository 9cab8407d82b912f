"""The bound on what is left out: `data.max_skipped_share`, of an index and of a run."""

from __future__ import annotations

from itertools import islice

from nvlm.batch import SkippedSample, too_many_skipped
from nvlm.data.index.source_index import SourceIndex
from nvlm.errors import DataError

_NUM_NAMED = 5


def check_rejected(indexes: list[SourceIndex], max_share: float) -> None:
    """Raise `DataError` if too large a share of the samples is unreadable, before any is trained.

    `max_share` is `data.max_skipped_share`.
    """
    rejected_by = {
        f"{index.source}/{reason}": number
        for index in indexes
        for reason, number in index.num_rejected.items()
    }
    num_samples = sum(len(index) for index in indexes) + sum(rejected_by.values())
    examples = [
        sample for index in indexes for sample in islice(index.iterate_rejected(), _NUM_NAMED)
    ]
    check_share(rejected_by, num_samples, max_share, examples, "are rejected by the index")


def check_share(
    skipped_by: dict[str, int],
    num_samples: int,
    max_share: float,
    examples: list[SkippedSample],
    how: str,
) -> None:
    """Raise `DataError` if too large a share of the samples is left out.

    Args:
        skipped_by: "SOURCE/REASON" -> samples.
        num_samples: used and left out.
        how: what happened to those left out, such as `were skipped`.
    """
    num_skipped = sum(skipped_by.values())
    if not too_many_skipped(num_skipped, num_samples, max_share):
        return
    most = sorted(skipped_by.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{name} {number:,}" for name, number in most[:10])
    named = ", ".join(
        f"{sample.source}/{sample.key or sample.shard} ({sample.reason}: {sample.detail})"
        for sample in examples[:_NUM_NAMED]
    )
    raise DataError(
        f"{num_skipped:,} of {num_samples:,} samples {how}, more than data.max_skipped_share "
        f"{max_share:g}. By source and reason: {counts}. Such as {named}. Repair the data "
        "or its settings, or allow a larger data.max_skipped_share"
    )
