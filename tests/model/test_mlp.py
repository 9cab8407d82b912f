"""Pixel shuffle against its test vector, the projector against plain torch, and the splice."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model

from nvlm.model.parts.pixel_shuffle import pixel_shuffle
from nvlm.model.splice import splice


def test_pixel_shuffle_vector():
    grid = torch.arange(16.0).view(1, 16, 1)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert pixel_shuffle(grid)[0].tolist() == expected


def test_pixel_shuffle_equals_the_published_reshapes():
    """InternVL's steps of version 2, one by one, at the full model's grid."""
    patches = torch.randn(2, 1024, 3, generator=torch.Generator().manual_seed(0))
    grid = patches.view(2, 32, 32, 3)
    columns_merged = grid.view(2, 32, 16, 6).permute(0, 2, 1, 3).contiguous()
    both_merged = columns_merged.view(2, 16, 16, 12).permute(0, 2, 1, 3)
    assert torch.equal(pixel_shuffle(patches), both_merged.reshape(2, 256, 12))


def test_projector_equals_plain_torch(parallel):
    config = small_model.small_config()
    projection = small_model.build(config, parallel).vision_projection
    parameters = dict(projection.named_parameters())
    assert parameters.keys() == {
        "norm.weight",
        "norm.bias",
        "mlp.linear_fc1.weight",
        "mlp.linear_fc2.weight",
    }
    width, hidden = 4 * config.model.vision.hidden_size, config.model.connector.ffn_hidden_size
    plain = torch.nn.Sequential(
        torch.nn.LayerNorm(width, eps=config.model.connector.norm_epsilon),
        torch.nn.Linear(width, hidden, bias=False),
        torch.nn.GELU(),
        torch.nn.Linear(hidden, config.model.language.hidden_size, bias=False),
    )
    names = ("norm.weight", "norm.bias", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight")
    for target, name in zip(plain.parameters(), names, strict=True):
        target.data.copy_(parameters[name])
    width = config.model.vision.hidden_size
    patches = torch.randn(2, 64, width, generator=torch.Generator().manual_seed(0))
    tokens = pixel_shuffle(patches)
    # Measured: equal to the last bit.
    torch.testing.assert_close(projection(patches), plain(tokens), rtol=0, atol=1e-6)


def test_splice_keeps_order_and_gradients():
    embeddings = torch.zeros(6, 1, 2, requires_grad=True)
    positions = torch.tensor([1, 2, 5])
    visual = torch.arange(1.0, 7.0).view(1, 3, 2).requires_grad_()
    spliced = splice(embeddings, positions, visual)
    assert spliced[:, 0].tolist() == [[0, 0], [1, 2], [3, 4], [0, 0], [0, 0], [5, 6]]
    (spliced * torch.arange(6.0).view(6, 1, 1)).sum().backward()
    assert embeddings.grad[:, 0, 0].tolist() == [0, 0, 0, 3, 4, 0]
    assert visual.grad[0, :, 0].tolist() == [1, 2, 5]


def test_splice_refuses_another_number_of_placeholders():
    with pytest.raises(AssertionError, match="placeholders"):
        splice(torch.zeros(4, 1, 2), torch.tensor([0, 1]), torch.ones(1, 1, 2))
