"""A stage that holds something else than its configuration implies does not start."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import small_model

from nvlm.model.placement import check_stage


def test_encoder_on_a_later_stage(parallel):
    """One process holds all: neither stage of two may."""
    model = small_model.build(small_model.small_config(), parallel)
    config = small_model.small_config("parallel.pipeline=2")
    for rank, misplaced in (
        (0, "language_model.decoder.final_layernorm.weight"),
        (1, "language_model.embedding"),
    ):
        with pytest.raises(AssertionError, match=rf"pipeline stage {rank} holds .*{misplaced}"):
            check_stage([model], config, replace(parallel, pipeline_rank=rank, pipeline_size=2))


def test_a_layer_too_few(parallel):
    model = small_model.build(small_model.small_config(), parallel)
    config = small_model.small_config("model.language.num_layers=3")
    with pytest.raises(AssertionError, match=r"differ in 7: language_model\.decoder\.layers\.2\."):
        check_stage([model], config, parallel)


def test_the_same_chunk_twice(parallel):
    config = small_model.small_config()
    model = small_model.build(config, parallel)
    with pytest.raises(AssertionError, match=r"holds vision_model\..* twice"):
        check_stage([model, model], config, parallel)
