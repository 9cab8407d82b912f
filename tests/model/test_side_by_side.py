"""Encoders side by side: features and gradients of each by itself, in timm and in transformers,
joined by hand; tiles that one reads larger or smaller as PIL resizes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import layout_steps, small_model
from helpers.encoders import SIDE_BY_SIDE
from helpers.paths import REPOSITORY
from helpers.published_vision import as_megatron, published_vision_model
from helpers.timm_folders import make_model
from PIL import Image

from nvlm.config import changed, load_config
from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.side_by_side import SideBySideConfig
from nvlm.config.encoders.timm import TimmConfig
from nvlm.errors import ConfigError
from nvlm.model.encoders.side_by_side import resized
from nvlm.sizes.flops import forward_flops, step_flops
from nvlm.sizes.parameters import component_parameters


@pytest.mark.parametrize("size", [128, 84])
def test_tiles_are_resized_as_pil_resizes_them(size, measure):
    pixels = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    found = resized(pixels, size)
    channels = [
        Image.fromarray(channel.numpy(), mode="F").resize((size, size), Image.Resampling.BILINEAR)
        for channel in pixels.flatten(0, 1)
    ]
    expected = torch.from_numpy(np.stack([np.asarray(one) for one in channels]))
    difference = float((found.flatten(0, 1) - expected).abs().max())
    measure(f"tiles resized to {size}, largest difference", "PIL", difference, 1e-5)
    assert resized(pixels, 112) is pixels


def test_features_and_gradients_are_those_of_each_encoder(parallel, measure):
    config = small_model.small_config(SIDE_BY_SIDE, "stage.freeze=[]")
    vision = config.model.vision
    assert isinstance(vision, SideBySideConfig)
    internvit, siglip = vision.encoders
    assert isinstance(internvit, InternViTConfig) and isinstance(siglip, TimmConfig)
    theirs = published_vision_model(internvit), make_model(siglip)
    ours = small_model.build(config, parallel).vision_model
    parameters = dict(ours.named_parameters())

    def of_each(value) -> dict[str, torch.Tensor]:
        second = {f"encoders.1.{key}": value(p) for key, p in theirs[1].named_parameters()}
        first = as_megatron(theirs[0], internvit, value)
        found = {f"encoders.0.{key}": tensor for key, tensor in first.items()}
        return found | {key: second[key] for key in parameters if key in second}

    weights = of_each(torch.Tensor.detach)
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])

    generator = torch.Generator().manual_seed(1)
    tiles = torch.randint(0, 256, (3, 3, 112, 112), generator=generator, dtype=torch.uint8)
    larger = torch.nn.functional.interpolate(
        tiles.float(), (128, 128), mode="bilinear", antialias=True
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (tiles / 255 - mean[:, None, None]) / std[:, None, None]
    expected = torch.cat(
        [
            theirs[0](pixels).last_hidden_state[:, 1:],
            siglips_features(theirs[1], larger / 127.5 - 1),
        ],
        dim=-1,
    )
    found = ours(tiles)
    assert found.shape == (3, 64, 80 + 64) == (3, vision.num_patches, vision.feature_size)
    truth = "transformers and timm, side by side"
    difference = float((found - expected).norm() / expected.norm())
    measure("features of two encoders", truth, difference, 1e-6)

    weighting = torch.randn(expected.shape, generator=generator)
    (expected * weighting).sum().backward()
    (found * weighting).sum().backward()
    gradients = of_each(lambda parameter: parameter.grad)
    worst = max(
        float((parameter.grad - gradients[name]).norm() / gradients[name].norm())
        for name, parameter in parameters.items()
    )
    measure("gradients of two encoders, worst tensor", truth, worst, 1e-5)


def siglips_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Of its second layer, the last."""
    return model.forward_intermediates(
        pixels, indices=[1], output_fmt="NLC", intermediates_only=True
    )[0]


def test_each_is_frozen_by_itself(parallel):
    from nvlm.train.freezing import freeze

    config = small_model.small_config(SIDE_BY_SIDE, "stage.freeze=['vision_model.encoders.0.*']")
    model = small_model.build(config, parallel)
    freeze([model], config, parallel)
    model(small_model.batch(config, 0, [40], num_tiles=1)).sum().backward()
    with_gradient = {n for n, p in model.vision_model.named_parameters() if p.grad is not None}
    second = {n for n, _ in model.vision_model.named_parameters() if n.startswith("encoders.1.")}
    assert with_gradient == second != set()


def gradients(parallel, *overrides: str) -> dict:
    """Of a step with images, by key and layer."""
    config = small_model.small_config(SIDE_BY_SIDE, *overrides)
    chunks = small_model.build_chunks(config, parallel)
    layout_steps.freeze(chunks, config, parallel)
    chunks = layout_steps.wrapped(chunks)
    micro_batches = layout_steps.with_images(config)[:1]
    return layout_steps.assemble(
        [layout_steps.losses_and_gradients(chunks, micro_batches, parallel)]
    )


def test_what_an_internvit_among_them_can_have(parallel):
    """Recomputation changes no gradient; a pattern for all puts adapters beside its matrices."""
    whole = gradients(parallel, "stage.freeze=[]")
    again = gradients(parallel, "stage.freeze=[]", "train.recompute.vision.granularity=full")
    assert whole.keys() == again.keys()
    for key, expected in whole.items():
        torch.testing.assert_close(again[key], expected, rtol=1e-6, atol=1e-8)
    adapted = gradients(parallel, "stage.adapters={'vision_model.*.linear_*.weight': {rank: 2}}")
    trained = {key for key, _ in adapted if key.startswith("vision_model.")}
    assert len(trained) == 2 * 4 * 2  # layers, matrices, factors
    assert all(key.startswith("vision_model.encoders.0.") for key in trained)


def test_parameters_of_the_documented_pair_by_hand(tmp_path):
    """SigLIP and DINOv2, both of 24 layers, 1024 channels and 24 x 24 patches."""
    page = (REPOSITORY / "docs" / "encoders.md").read_text().partition("## Side by side")[2]
    base = REPOSITORY / "configs/run/internvit_300m_qwen3_4b/pretrain.yaml"
    (tmp_path / "run.yaml").write_text(f"base: {base}\n{page.split('```')[1].removeprefix('yaml')}")
    config = load_config(tmp_path / "run.yaml")
    # Attention and MLP; biases of q, k, v, projection, MLP (4 + 1), and two norms.
    layer = 4 * 1024**2 + 2 * 4 * 1024**2 + (3 + 1 + 5 + 4) * 1024
    # Pixels of a patch, its bias, positions.
    siglip = 24 * layer + (3 * 16 * 16 + 1 + 576) * 1024
    # Two layer scales each; class token, registers.
    dinov2 = 24 * (layer + 2 * 1024) + (3 * 14 * 14 + 1 + 576 + 1 + 4) * 1024
    rows = component_parameters(config.model, "vision_model")
    assert sum(row.num_parameters for row in rows) == siglip + dinov2
    assert config.model.vision.image_size == 384
    assert config.model.connector_sizes.channels == 2048
    assert config.model.num_tokens_per_tile == 144
    # Operations: those of a tile through each by itself; DINOv2 has 5 tokens besides.
    of_layers = [24 * 2 * 12 * 1024**2 * n + 24 * 4 * 1024 * n**2 for n in (576, 581)]
    assert forward_flops(config.model).encoder_per_tile == sum(of_layers)
    trained = changed(config, {"stage.freeze": ["language_model.*", "vision_model.encoders.0.*"]})
    frozen = changed(config, {"stage.freeze": ["language_model.*", "vision_model.*"]})
    more = step_flops(trained).per_tile - step_flops(frozen).per_tile
    assert more == 2 * of_layers[1]


def refusal(*encoders: str) -> str:
    section = f"model.vision={{kind: side_by_side, encoders: [{', '.join(encoders)}]}}"
    with pytest.raises(ConfigError) as error:
        small_model.small_config(section)
    return "\n".join(error.value.args)


def test_what_does_not_go_together_is_refused():
    sizes = "hidden_size: 64, ffn_hidden_size: 96, num_attention_heads: 4, num_layers: 2"
    clip = f"{{kind: timm, name: vit_base_patch16_clip_224, image_size: 112, {sizes}}}"
    dinov2 = f"{{kind: timm, name: vit_base_patch14_dinov2, image_size: 112, {sizes}}}"
    message = refusal(dinov2, clip)
    assert "encoders.1 makes 7 x 7 patches of a tile (image_size 112 / 16)" in message
    assert "encoders.0 8 x 8 (112 / 14)" in message
    assert "image_size 128 for model.vision.encoders.1 fits, or 98 for" in message
    assert "has one section, and side by side are two or more" in refusal(clip)
    assert "encoders.1.kind: must be one of internvit, timm" in refusal(clip, "{kind: resnet}")
    message = refusal(clip, clip.replace("num_attention_heads: 4", "num_attention_heads: 5"))
    assert "model.vision.encoders.1.hidden_size 64 is not a multiple of" in message
    message = refusal(clip, clip.replace("kind", "knd"))
    assert "unknown key 'model.vision.encoders.1.knd'; did you mean" in message
