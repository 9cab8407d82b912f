"""The tiny model with random weights."""

from __future__ import annotations

import pytest
from helpers.rates import make_config


@pytest.fixture
def model(parallel):
    from nvlm.model.nvlm_d import build_model
    from nvlm.model.parts.initialize import initialize_weights

    model = build_model(make_config(), parallel)
    initialize_weights(model, make_config())
    return model
