"""Random Hugging Face folders of a small InternViT and Qwen2, and the configuration they fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

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
    """A Qwen2, or a Llama where queries, keys and values have no bias."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    language = config.model.language
    settings = {
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_query_groups,
        "vocab_size": language.vocab_size,
        "rms_norm_eps": language.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_base},
        "max_position_embeddings": language.max_position_embeddings,
        "tie_word_embeddings": False,
    }
    settings |= changes
    if language.qkv_bias:
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings))
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
