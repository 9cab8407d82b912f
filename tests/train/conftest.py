"""The small model of tests/model, and the process groups of a world of one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "model"))


@pytest.fixture(scope="module")
def parallel():
    import small_model

    from nvlm.parallel.groups import initialize, shut_down

    yield initialize(small_model.small_config(), world_size=1)
    shut_down()
