"""timm's ViTs here and in timm: outputs and gradients, family by family, at small sizes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.timm_reference import timm

from nvlm.config.encoders.timm import TimmConfig
from nvlm.model.encoders.timm import Encoder

SIZES = {"num_layers": 3, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 4}
# Family -> name in timm, and the layer or layers whose hidden states are taken.
FAMILIES = {
    "CLIP of OpenAI": ("vit_base_patch16_clip_quickgelu_224.openai", -2),
    "OpenCLIP": ("vit_large_patch14_clip_224.laion2b", -1),
    "SigLIP": ("vit_so400m_patch14_siglip_384", -1),
    "SigLIP 2": ("vit_base_patch32_siglip_256.v2_webli", -3),
    "DINOv2": ("vit_large_patch14_dinov2", -1),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", -2),
    "DINOv2, the largest": ("vit_giant_patch14_reg4_dinov2", -1),
    "AIMv2": ("aimv2_large_patch14_224", -1),
    "MAE, DINO, supervised": ("vit_base_patch16_224", -1),
    "CLIP of OpenAI, two layers": ("vit_base_patch16_clip_quickgelu_224.openai", [-3, -2]),
    "DINOv2 with registers, three layers": ("vit_small_patch14_reg4_dinov2", [-3, -2, -1]),
}


def encoder_of(config: TimmConfig) -> Encoder:
    return Encoder(SimpleNamespace(**config.module_settings()))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_timms(family, measure):
    name, wanted = FAMILIES[family]
    layers = wanted if isinstance(wanted, list) else [wanted]
    chosen: dict = {"feature_layers" if isinstance(wanted, list) else "feature_layer": wanted}
    side = 84 if "patch14" in name else 96
    config = TimmConfig(name=name, image_size=side, **chosen, **SIZES)
    assert list(config.problems()) == []
    ratio = SIZES["ffn_hidden_size"] / SIZES["hidden_size"]
    torch.manual_seed(5)
    theirs = timm().create_model(
        name.partition(".")[0],
        img_size=side,
        embed_dim=SIZES["hidden_size"],
        depth=SIZES["num_layers"],
        num_heads=SIZES["num_attention_heads"],
        mlp_ratio=ratio * (2 if config.model.mlp == "packed_swiglu" else 1) + 1e-6,
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = encoder_of(config)
    weights = {key: theirs.state_dict()[key] for key in ours.state_dict()}
    ours.load_state_dict(weights)
    ours, theirs = ours.double(), theirs.double()
    rows = {row.key: row.shape for row in config.parameters()}
    assert {key: tuple(value.shape) for key, value in ours.named_parameters()} == rows

    tiles = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in config.pixel_statistics)
    found = ours(tiles)
    of_layers = theirs.forward_intermediates(
        ((tiles.float() / 255 - mean) / std).double(),
        indices=[SIZES["num_layers"] + layer for layer in layers],
        output_fmt="NLC",
        intermediates_only=True,
    )
    expected = torch.cat(of_layers, dim=-1)
    assert found.shape[1:] == (config.num_patches, config.feature_size)
    direction = torch.randn_like(expected)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    measure(f"{family}: hidden states", "timm", relative(found, expected), 1e-12)
    others = dict(theirs.named_parameters())
    worst = max(relative(one.grad, others[key].grad) for key, one in ours.named_parameters())
    measure(f"{family}: gradients", "timm", worst, 1e-10)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
