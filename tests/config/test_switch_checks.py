"""What the decoder's switches do not go with is said before any process starts."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.errors import ConfigError

RUN = REPOSITORY / "configs/run/tiny/sft.yaml"
X = [
    "model.fusion=cross_attention",
    "model.cross_attention.layer_interval=2",
    "stage.max_tiles_per_sequence=24",
]
BOTH_WAYS = "model.visual_attention=bidirectional"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*X, BOTH_WAYS], "bidirectional does not go with model.fusion cross_attention"),
        ([BOTH_WAYS, "parallel.context=2"], "parallel.context 2 does not go with model.visual_att"),
    ],
)
def test_refused_with_the_reason(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(RUN, overrides)
