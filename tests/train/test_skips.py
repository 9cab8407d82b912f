"""The error budget: what is counted, when a run stops, and what it says."""

from __future__ import annotations

import pytest

from nvlm.batch import SkippedSample
from nvlm.errors import DataError
from nvlm.train.skips import add_counts, check_run, count_skipped


def skipped(key: int, source: str = "charts", reason: str = "image") -> SkippedSample:
    return SkippedSample(source, "a.tar", str(key), reason, "truncated")


def test_counts_by_source_and_reason():
    samples = [skipped(1), skipped(2), skipped(3, reason="json"), skipped(4, source="text")]
    counts = count_skipped(samples)
    assert counts == {"charts/image": 2, "charts/json": 1, "text/image": 1}
    assert add_counts(counts, {"text/image": 2, "text/json": 1}) == {
        "charts/image": 2,
        "charts/json": 1,
        "text/image": 3,
        "text/json": 1,
    }


def test_budget():
    examples = [skipped(number) for number in range(9)]
    # Too few to say anything, or within the share.
    check_run({"charts/image": 19}, 0, 0.05, examples)
    check_run({"charts/image": 50}, 950, 0.05, examples)
    check_run({"charts/image": 900}, 100, 1.0, examples)
    with pytest.raises(DataError) as caught:
        check_run({"charts/image": 40, "text/json": 11}, 949, 0.05, examples)
    message = str(caught.value)
    assert "51 of 1,000 samples were skipped, more than data.max_skipped_share 0.05" in message
    assert "By source and reason: charts/image 40, text/json 11." in message
    assert "charts/0 (image: truncated), charts/1" in message
    assert "charts/5" not in message
