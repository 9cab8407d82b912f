"""A checkpoint may take longer to write than a collective may wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import slow_disk
from helpers.spawn import run_program_or_fail


@pytest.mark.parallel
@pytest.mark.slow
def test_ranks_wait_for_the_slowest_writer(tmp_path: Path):
    program = slow_disk.__file__
    printed = run_program_or_fail(
        2, program, str(tmp_path / "checkpoint"), log=tmp_path / "log", timeout_seconds=120
    )
    assert printed.count(": written") == 2
    assert "resting: after 0 minutes not done on ranks 1: see whether their disk hangs" in printed
