"""What a run leaves out of training: counted by source and reason, and bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from nvlm.batch import SkippedSample, too_many_skipped
from nvlm.data.index.source_index import SourceIndex
from nvlm.errors import DataError

_NUM_NAMED = 5


def count_skipped(skipped: Iterable[SkippedSample]) -> dict[str, int]:
    """ "SOURCE/REASON" -> samples."""
    counts = Counter(f"{sample.source}/{sample.reason}" for sample in skipped)
    return dict(sorted(counts.items()))


def add_counts(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return dict(sorted((Counter(first) + Counter(second)).items()))


def check_index(indexes: list[SourceIndex], max_share: float) -> None:
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
    _check(rejected_by, num_samples, max_share, examples, "are rejected by the index")


def check_run(
    skipped_by: dict[str, int], num_samples: int, max_share: float, examples: list[SkippedSample]
) -> None:
    """Raise `DataError` if too large a share of the samples drawn so far was left out.

    Args:
        skipped_by: of the whole run; see `count_skipped`.
        num_samples: trained on so far.
        examples: some of what was skipped lately.
    """
    num_drawn = num_samples + sum(skipped_by.values())
    _check(skipped_by, num_drawn, max_share, examples, "were skipped")


def _check(
    skipped_by: dict[str, int],
    num_samples: int,
    max_share: float,
    examples: list[SkippedSample],
    how: str,
) -> None:
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
