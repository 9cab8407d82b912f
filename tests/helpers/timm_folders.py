"""Folders as timm puts its models into the hub, of small random ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from helpers.timm_reference import timm
from nvlm.config.encoders.timm import TimmConfig


def make_model(vision: TimmConfig, image_size: int | None = None) -> torch.nn.Module:
    """timm's own model of the sizes of `vision`, every parameter random."""
    halves = 2 if vision.model.mlp == "packed_swiglu" else 1
    model = timm().create_model(
        vision.name.partition(".")[0],
        img_size=image_size or vision.image_size,
        embed_dim=vision.hidden_size,
        depth=vision.num_layers,
        num_heads=vision.num_attention_heads,
        mlp_ratio=halves * vision.ffn_hidden_size / vision.hidden_size + 1e-6,
        num_classes=0,
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.dim() == 1
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.1 * noise)
    return model.eval()


def make_timm_folder(folder: Path, vision: TimmConfig, image_size: int | None = None) -> None:
    """As `timm.models.push_to_hf_hub` writes it."""
    folder.mkdir(parents=True)
    model = make_model(vision, image_size)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(timm_config(vision)))


def timm_config(vision: TimmConfig) -> dict:
    name, _, tag = vision.name.partition(".")
    mean, std = vision.pixel_statistics
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": vision.hidden_size,
        "pretrained_cfg": {"tag": tag or "x", "mean": list(mean), "std": list(std)},
    }
