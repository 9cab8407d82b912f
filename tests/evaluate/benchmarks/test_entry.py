"""What holds of every benchmark's entry."""

from __future__ import annotations

import pytest
from helpers.published_files import write_parquet

from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.evaluate.suite.files import lacks_files


@pytest.mark.parametrize("name", BENCHMARKS)
def test_entries_fit_together(name):
    entry = BENCHMARKS[name]
    assert entry.name == name
    assert entry.splits and entry.files and entry.source
    assert entry.prompt_is in ("published", "assumed")
    assert set(entry.unscored_splits) <= set(entry.splits)
    assert entry.splits[0] not in entry.unscored_splits
    assert not entry.unscored_splits or entry.submission
    assert (entry.train_split is None) == (entry.answer is None)
    assert entry.paper_split is None or entry.paper_split in entry.splits
    assert entry.max_new_tokens > 0


def test_one_form_of_files_is_enough(tmp_path):
    """Its files are published in several forms: with one of them nothing lacks."""
    entry = BENCHMARKS["chartqa"]
    assert lacks_files(entry, tmp_path)
    write_parquet(tmp_path / "chartqa/test-0.parquet", [{"query": "?", "image": 0}])
    assert not lacks_files(entry, tmp_path)
