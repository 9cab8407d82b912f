"""The configuration that a folder like the released NVLM-D-72B was made with, from its own files.

What is not in an earlier folder's `config.json` has the value that our modelling files give it
(hf_files/configuration_nvlm_d.py), as the released model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nvlm.config.changed import changed
from nvlm.config.compose import validate
from nvlm.config.rope_scaling import SCALINGS
from nvlm.config.schema import Fusion, RunConfig
from nvlm.convert.export.config import RELEASED_IMAGE_TOKEN, RELEASED_PROJECTOR_EPSILON
from nvlm.convert.hf.architectures import architecture_of
from nvlm.convert.hf.comparison import read_rope, shown, with_defaults
from nvlm.convert.hf.config_keys import FUSIONS, INTERN_VIT, QWEN2
from nvlm.convert.hf.expert_keys import EXPERT_KEYS, moe_section
from nvlm.convert.hf.folder import CONFIG_FILE, HfFolder, read_json
from nvlm.convert.hf.values import NORM_TYPES
from nvlm.convert.tables.nvlm_d import LANGUAGE_PREFIX, VISION_PREFIX
from nvlm.errors import ConvertError

GENERATION_FILE = "generation_config.json"
_RELEASED_SYSTEM_MESSAGE = "Answer the questions."
# `downsample_ratio` -> `pixel_shuffle`
_SHUFFLES: dict[float, int] = {1.0: 1, 0.5: 2, 0.25: 4}
# Stored heads that any tensor-parallel size up to this divides.
_MOST_TENSOR_RANKS = 8


def config_of_export(folder: HfFolder) -> RunConfig:
    """What the folder computes, and how images and text become its sequences.

    What has no meaning without training, such as the optimizer, has the defaults.

    Raises:
        ConvertError, ConfigError: `config.json` is not that of an NVLM-D, or a value in it is
            wrong. `open_released` looks at every key besides.
    """
    found, where = folder.config, f"{folder.path / CONFIG_FILE}"
    architecture = architecture_of(found)
    if architecture not in FUSIONS:
        raise ConvertError(
            f"{where}: architectures {shown(found.get('architectures') or [])}: only one of "
            f"{', '.join(FUSIONS)} answers here; from a vision and a language model `nvlm convert "
            "from-hf` makes a checkpoint to train"
        )
    vision = _vision(folder, folder.part("vision_config").config)
    language, llm = _language(folder.part("llm_config").config)
    stage = _stage(found, language["max_position_embeddings"], FUSIONS[architecture])
    config = validate(
        {
            "run": {"name": "export", "dir": str(folder.path)},
            "model": {
                "name": architecture.lower(),
                "fusion": FUSIONS[architecture],
                "cross_attention": _cross_attention(found, FUSIONS[architecture]),
                "vision": vision,
                "connector": _connector(found, llm),
                "language": language,
                "tokenizer": str(folder.path),
                "image_token": found.get("image_token", RELEASED_IMAGE_TOKEN),
            },
            "data": {"root": str(folder.path)},
            "stage": stage,
            "train": {
                "steps": 1,
                "global_batch_size": 1,
                "precision": _precision(folder),
                "optimizer": {"lr": 1.0},
            },
        },
        where,
    )
    return changed(config, {}, where)


def stop_ids_of_export(folder: HfFolder) -> list[int]:
    """The tokens that end an answer besides the end of a turn, as transformers reads them."""
    path = folder.path / GENERATION_FILE
    found = read_json(path).get("eos_token_id") if path.exists() else None
    ids = found if isinstance(found, list) else [found] if found is not None else []
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise ConvertError(f"{path}: eos_token_id is {shown(found)}, expected token ids")
    return ids


def _vision(folder: HfFolder, found: Mapping[str, Any]) -> Any:
    encoders = found.get("encoders")
    if architecture_of(found) == "SideBySideVisionModel" and isinstance(encoders, list):
        return {
            "kind": "side_by_side",
            "encoders": [
                _vision(folder, one) if isinstance(one, dict) else one for one in encoders
            ],
        }
    if architecture_of(found) == "TimmVisionModel":
        return found.get("encoder")  # what else it says follows from this, and is compared later
    values = with_defaults(found, [*INTERN_VIT.settings], "InternVisionModel")
    vision = {setting: values[key] for key, setting in INTERN_VIT.settings.items()}
    normalizations = {name: ours for ours, name in NORM_TYPES.items()}
    normalization = values["norm_type"]
    vision["normalization"] = (
        normalizations.get(normalization, normalization)
        if isinstance(normalization, str)
        else normalization
    )
    stored = found.get("num_stored_attention_heads")
    if stored is None:
        stored = _stored_heads(folder, vision)
    layers = found.get("feature_layers")
    return {**vision, "num_stored_attention_heads": stored, "feature_layers": layers}


def _stored_heads(folder: HfFolder, vision: Mapping[str, Any]) -> Any:
    """Those in the tensors, and as many zero ones as let tensor-parallel ranks share them."""
    heads, width = vision["num_attention_heads"], vision["hidden_size"]
    name = f"{VISION_PREFIX}encoder.layers.0.attn.qkv.weight"
    if name in folder.names() and isinstance(heads, int) and isinstance(width, int) and heads:
        rows_per_head = 3 * (width // heads)
        heads = max(heads, folder.shape(name)[0] // max(1, rows_per_head))
        return -(-heads // _MOST_TENSOR_RANKS) * _MOST_TENSOR_RANKS
    return heads


def _language(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our section, and Hugging Face's values. What is not computed here is refused later."""
    architecture = architecture_of(found)
    names = [*QWEN2.settings, "tie_word_embeddings", "max_position_embeddings"]
    values = with_defaults(found, names, architecture)
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    language = {s: values[key] for key, s in QWEN2.settings.items() if key != "head_dim"}
    moe = moe_section(dict(found)) if architecture in EXPERT_KEYS else None
    rope = read_rope(found)
    base, kind = rope.pop("rope_theta"), rope.pop("rope_type", None) or rope.pop("type", None)
    rope.pop("type", None)
    return {
        **language,
        "kv_channels": values["head_dim"],
        "rope_base": base,
        "rope_scaling": _rope_scaling(kind, rope),
        "qkv_bias": architecture == "Qwen2ForCausalLM" or bool(moe and found.get("qkv_bias")),
        "qk_layernorm": architecture in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
        "moe": moe,
        "share_embeddings_and_output_weights": values["tie_word_embeddings"],
        "max_position_embeddings": values["max_position_embeddings"],
    }, values


def _rope_scaling(kind: Any, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Our section of what a file says of its rotary scaling; None of what we do not have."""
    section = SCALINGS.get(kind) if isinstance(kind, str) else None
    if section is None:
        return None
    return {"kind": kind, **{k: v for k, v in found.items() if k in section.model_fields}}


def _connector(found: Mapping[str, Any], llm: Mapping[str, Any]) -> Any:
    if found.get("connector") is not None:
        settings = found["connector"]
        if not isinstance(settings, dict):
            return settings  # which the configuration refuses
        # What follows from the others, and is compared with it later.
        return {key: value for key, value in settings.items() if key != "num_tokens"}
    ratio = found.get("downsample_ratio", 0.5)
    width, epsilon = found.get("projector_hidden_size"), found.get("projector_layer_norm_eps")
    return {
        "ffn_hidden_size": llm["intermediate_size"] if width is None else width,
        "pixel_shuffle": _SHUFFLES.get(ratio, ratio) if isinstance(ratio, float | int) else ratio,
        "norm_epsilon": RELEASED_PROJECTOR_EPSILON if epsilon is None else epsilon,
    }


def _cross_attention(found: Mapping[str, Any], fusion: Fusion) -> dict[str, Any] | None:
    if fusion == "decoder_only":
        return None
    return {
        "layer_interval": found.get("cross_attention_interval"),
        "num_query_groups": found.get("cross_attention_num_key_value_heads"),
    }


def _stage(found: Mapping[str, Any], sequence_length: Any, fusion: Fusion) -> dict[str, Any]:
    is_tiled = found.get("dynamic_image_size", True)
    max_num_tiles = found.get("max_dynamic_patch", 6) if is_tiled else 1
    return {
        "name": "export",
        "sequence_length": sequence_length,
        "max_num_tiles": max_num_tiles,
        "use_thumbnail": found.get("use_thumbnail", True) and max_num_tiles != 1,
        "tile_tags": found.get("tile_tags", "1d"),
        "image_boundary": found.get("image_boundary", "merged"),
        "system_message": found.get("system_message", _RELEASED_SYSTEM_MESSAGE),
        # Of questions: no more images than have room for their marks.
        "max_tiles_per_sequence": None if fusion == "decoder_only" else sequence_length,
    }


def _precision(folder: HfFolder) -> str:
    """fp32 where the embeddings are; 16 bits of either kind are computed with as bf16."""
    name = f"{LANGUAGE_PREFIX}model.embed_tokens.weight"
    stored = folder.dtype(name) if name in folder.names() else torch.bfloat16
    return "fp32" if stored == torch.float32 else "bf16"
