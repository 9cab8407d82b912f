"""Random Hugging Face folders of a small InternViT and Qwen2, and the configuration they fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from helpers import published_models
from helpers.paths import REPOSITORY
from nvlm.checkpoint_files import MANIFEST_FILE
from nvlm.config import RunConfig, load_config

SIZES = ["model.vision.num_layers=2", "model.language.num_layers=4", "train.precision=fp32"]


def convert_config(*overrides: str) -> RunConfig:
    return load_config(REPOSITORY / "configs/run/tiny/sft.yaml", [*SIZES, *overrides])


def make_vision_folder(folder: Path, config: RunConfig) -> None:
    """As OpenGVLab publishes InternViT: real heads only."""
    from nvlm.convert.hf.values import vision_values
    from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig
    from nvlm.convert.hf_files.modeling_intern_vit import InternVisionModel

    model = InternVisionModel(InternVisionConfig(**vision_values(config.model.vision)))
    randomise(model)
    model.save_pretrained(folder)


def make_language_folder(folder: Path, config: RunConfig, **changes) -> None:
    """A Qwen2, a Qwen3 where queries and keys are normalised, or else a Llama."""
    language = config.model.language
    settings = {"tie_word_embeddings": False, **changes}
    found = published_models.language_settings(language, **settings)
    model = published_models.language_class(language)(found)
    randomise(model)
    model.save_pretrained(folder)


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A copy that may be changed: without checksums, as earlier checkpoints are."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns(MANIFEST_FILE)))


def randomise(model: torch.nn.Module) -> None:
    """Every tensor random, so that no two could be exchanged unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name or name.endswith((".ls1", ".ls2"))
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.05 * noise)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors
