"""The layout that answering uses, from that of the training."""

from __future__ import annotations

import pytest
from helpers import small_model

from nvlm.config.schema import ParallelConfig
from nvlm.generate.engine import config_for_generation

STAGES = ["model.language.num_layers=8", "parallel.pipeline=2"]
CHUNKS = [*STAGES, "parallel.virtual_pipeline=2"]


@pytest.mark.parametrize(
    "trained, layers",
    [
        (STAGES, "even"),
        (CHUNKS, "even"),
        ([*STAGES, "parallel.layout=[1, 7]"], [1, 7]),
        ([*CHUNKS, "parallel.layout=[[0, 1], [4, 3]]"], [1, 7]),
    ],
)
def test_stages_keep_their_numbers_of_layers(trained: list[str], layers: object):
    config = small_model.small_config(*trained)
    used = config_for_generation(config, layout=None, world_size=2).parallel
    assert (used.pipeline, used.virtual_pipeline, used.layout) == (2, 1, layers)


def test_another_layout_is_even():
    config = small_model.small_config(*STAGES, "parallel.layout=[1, 7]")
    for layout, size in ((None, 1), (ParallelConfig(pipeline=4), 4)):
        used = config_for_generation(config, layout, world_size=size).parallel
        assert (used.pipeline, used.layout) == (size, "even")
