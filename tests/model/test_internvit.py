"""InternViT against transformers' InternVL vision model: the same, computed by other code."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model, variants
from helpers.published_vision import as_megatron, published_vision_model

LAYERS = "model.vision.feature_layers=[-2, -1]"
FULL = "train.recompute.vision.granularity=full"
CASES = {
    **variants.VISION,
    "6B, both layers": [LAYERS],
    "300M, both layers, recomputed": [*variants.INTERNVIT_300M, LAYERS, FULL],
    "6B, both layers, one recomputed": [LAYERS, FULL, "train.recompute.vision.num_layers=1"],
}


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(parallel, case, measure):
    """Outputs and gradients; those of the zero heads after the real ones are zero."""
    config = small_model.small_config("stage.freeze=[]", *CASES[case])
    vision = config.model.vision
    published = published_vision_model(vision)
    ours = small_model.build(config, parallel).vision_model
    parameters = dict(ours.named_parameters())
    weights = as_megatron(published, vision, torch.Tensor.detach)
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])

    generator = torch.Generator().manual_seed(1)
    shape = (3, 3, vision.image_size, vision.image_size)
    tiles = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    states = []
    for layer in published.encoder.layer:
        layer.register_forward_hook(lambda _, __, output: states.append(hidden_of(output)[:, 1:]))
    last = published((tiles / 255 - mean) / deviation).last_hidden_state[:, 1:]
    assert torch.equal(last, states[-1])
    expected = torch.cat(states, dim=-1) if vision.feature_layers else last
    result = ours(tiles)
    assert result.shape[1:] == (vision.num_patches, vision.feature_size)
    assert expected.abs().max() > 1
    truth = "transformers InternVLVisionModel"
    # Measured: at most 2e-6 where outputs reach 10.
    error = float((result - expected).detach().abs().max())
    measure(f"InternViT-{case}: outputs, largest difference", truth, error, 1e-5)

    weighting = torch.randn(expected.shape, generator=generator)
    (expected * weighting).sum().backward()
    (result * weighting).sum().backward()
    gradients = as_megatron(published, vision, lambda parameter: parameter.grad)
    worst = max(
        float((parameter.grad - gradients[name]).norm() / gradients[name].norm())
        for name, parameter in parameters.items()
    )
    measure(f"InternViT-{case}: gradients, worst tensor", truth, worst, 1e-5)


def hidden_of(output) -> torch.Tensor:
    """Layers of some releases of transformers return a tuple."""
    return output if isinstance(output, torch.Tensor) else output[0]


def test_frozen_encoder_keeps_no_graph(parallel):
    model = small_model.build(small_model.small_config(), parallel)
    model.vision_model.requires_grad_(False)
    tiles = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    assert not model.vision_model(tiles).requires_grad
    micro_batch = small_model.batch(small_model.small_config(), 0, [40], num_tiles=1)
    model(micro_batch).sum().backward()
    assert all(parameter.grad is None for parameter in model.vision_model.parameters())
    assert all(parameter.grad is not None for parameter in model.vision_projection.parameters())
