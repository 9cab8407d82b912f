"""The parameters of the projector: a LayerNorm and two matrices without biases."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.schema import ModelConfig
from nvlm.sizes.row import ONES, ZEROS, Normal, Parameter


def parameters(model: ModelConfig) -> Iterator[Parameter]:
    """In the order of the forward pass; keys without the component's name."""
    size, ffn = model.vision.token_size, model.projector.ffn_hidden_size
    normal = Normal(model.projector.init_std)
    yield Parameter("norm.weight", (size,), ONES)
    yield Parameter("norm.bias", (size,), ZEROS)
    yield Parameter("mlp.linear_fc1.weight", (ffn, size), normal, 0)
    yield Parameter("mlp.linear_fc2.weight", (model.language.hidden_size, ffn), normal, 1)
