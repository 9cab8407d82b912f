"""What `parallel.context` does not go with is said before any process starts."""

from __future__ import annotations

import pytest
from helpers import beside_batches
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.config.checks import check_world_size
from nvlm.errors import ConfigError

RUN = REPOSITORY / "configs/run/tiny/sft.yaml"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["parallel.vision=tile_parallel", "stage.freeze=[vision_model.*]"],
            "parallel.context 2 does not go with parallel.vision tile_parallel",
        ),
        (
            ["train.fp8.recipe=delayed"],
            "parallel.context 2 does not go with train.fp8.recipe delayed",
        ),
        (
            beside_batches.SMALL["cross_attention"],
            "parallel.context 2 does not go with model.fusion cross_attention",
        ),
        (
            ["train.attention_dropout=0.1"],
            "parallel.context 2 does not go with train.attention_dropout 0.1",
        ),
    ],
)
def test_refused_with_the_reason(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(RUN, ["parallel.context=2", *overrides])


def test_dropout_of_hidden_states_goes_with_it():
    load_config(RUN, ["parallel.context=2", "train.hidden_dropout=0.1"])


def test_processes_have_to_fit():
    config = load_config(RUN, ["parallel.context=2", "parallel.tensor=2"])
    assert check_world_size(config, 8) == 2
    with pytest.raises(ConfigError, match=r"parallel\.context 2 x parallel\.pipeline 1 = 4"):
        check_world_size(config, 6)
