"""Why residual additions follow the caller: plain layers build a graph under `no_grad`."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model

from nvlm.model.encoders import internvit


@pytest.fixture
def tiles() -> torch.Tensor:
    config = small_model.small_config()
    return small_model.batch(config, 1, [60], num_tiles=1).tiles


def encoded(tiles: torch.Tensor, parallel) -> torch.Tensor:
    """A trainable encoder's output, as generation asks for it."""
    model = small_model.build(small_model.small_config("stage.freeze=[]"), parallel)
    with torch.no_grad():
        return model.vision_model(tiles)


def test_plain_layers_keep_residuals_under_no_grad(parallel, tiles, monkeypatch):
    assert not encoded(tiles, parallel).requires_grad
    monkeypatch.setattr(internvit, "follow_gradient_mode", lambda block: None)
    assert encoded(tiles, parallel).requires_grad
