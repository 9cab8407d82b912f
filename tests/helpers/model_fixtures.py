"""The process groups of a world of one, for tests that build Megatron-core modules."""

from __future__ import annotations

import pytest

from helpers import small_model
from nvlm.parallel.groups import initialize, shut_down


@pytest.fixture(scope="module")
def parallel():
    yield initialize(small_model.small_config(), world_size=1)
    shut_down()
