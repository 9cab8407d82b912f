"""The JSON files of an export: what the model is, how it generates, how images are prepared."""

from __future__ import annotations

from typing import Any

from nvlm.config.schema import RunConfig
from nvlm.convert.hf_folder import language_architecture
from nvlm.errors import ConvertError

# What transformers files and servers for the released NVLM-D build without being told.
RELEASED_PROJECTOR_EPSILON = 1e-5

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


def model_config(
    config: RunConfig, dtype: str, image_token_id: int, eos_token_id: int, pad_token_id: int | None
) -> dict[str, Any]:
    """`config.json`, with the released model's keys and ours (see configuration_nvlm_d.py).

    Args:
        dtype: `float32` or `bfloat16`.
        image_token_id: id of `model.image_token`.
        eos_token_id: id of the token that ends a turn.
        pad_token_id: the tokenizer's padding id, if it has one.
    """
    vision, language, stage = config.model.vision, config.model.language, config.stage
    architecture = language_architecture(language)
    return {
        "architectures": ["NVLM_D"],
        "auto_map": {
            "AutoConfig": "configuration_nvlm_d.NVLM_D_Config",
            "AutoModel": "modeling_nvlm_d.NVLM_D_Model",
            "AutoModelForCausalLM": "modeling_nvlm_d.NVLM_D_Model",
        },
        "model_type": "NVLM_D",
        "dtype": dtype,
        "downsample_ratio": 0.5,
        "dynamic_image_size": stage.max_num_tiles > 1,
        "force_image_size": vision.image_size,
        "max_dynamic_patch": stage.max_num_tiles,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "chatml",
        "use_thumbnail": stage.use_thumbnail,
        "tie_word_embeddings": False,
        "image_boundary": stage.image_boundary,
        "image_token": config.model.image_token,
        "img_context_token_id": image_token_id,
        "projector_hidden_size": config.model.projector.ffn_hidden_size,
        "projector_layer_norm_eps": config.model.projector.norm_epsilon,
        "system_message": stage.system_message,
        "tile_tags": stage.tile_tags,
        "llm_config": {
            "architectures": [architecture],
            "model_type": "qwen2" if language.qkv_bias else "llama",
            "attention_bias": language.qkv_bias,
            "attention_dropout": 0.0,
            "dtype": dtype,
            "eos_token_id": eos_token_id,
            "hidden_act": "silu",
            "hidden_size": language.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": language.ffn_hidden_size,
            "max_position_embeddings": language.max_position_embeddings,
            "mlp_bias": False,
            "num_attention_heads": language.num_attention_heads,
            "num_hidden_layers": language.num_layers,
            "num_key_value_heads": language.num_query_groups,
            "pad_token_id": pad_token_id,
            "rms_norm_eps": language.norm_epsilon,
            # Once for current transformers, once for earlier readers.
            "rope_parameters": {"rope_theta": language.rope_base, "rope_type": "default"},
            "rope_theta": language.rope_base,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": language.vocab_size,
        },
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "attention_dropout": 0.0,
            "drop_path_rate": 0.0,
            "dropout": 0.0,
            "dtype": dtype,
            "hidden_act": "gelu",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "initializer_factor": 0.1,
            "initializer_range": 0.02,
            "intermediate_size": vision.ffn_hidden_size,
            "layer_norm_eps": vision.norm_epsilon,
            "norm_type": "rms_norm",
            "num_attention_heads": vision.num_attention_heads,
            "num_channels": 3,
            "num_hidden_layers": vision.num_layers,
            "num_stored_attention_heads": vision.num_stored_attention_heads,
            "patch_size": vision.patch_size,
            "qk_normalization": True,
            "qkv_bias": False,
        },
    }


def generation_config(eos_token_id: int, pad_token_id: int | None) -> dict[str, Any]:
    """`generation_config.json`: greedy."""
    return {"do_sample": False, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}


def preprocessor_config(image_size: int) -> dict[str, Any]:
    """`preprocessor_config.json`, as the released model has it: one tile's preparation."""
    return {
        "crop_size": image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "resample": 3,
        "size": image_size,
    }


def check_tile_tags(config: RunConfig) -> None:
    """Raise `ConvertError` for tags that the exported modelling files cannot write."""
    tags, most = config.stage.tile_tags, config.stage.max_num_tiles
    if tags in ("none", "1d") and not (tags == "1d" and most > 9):
        return
    raise ConvertError(
        f"stage.tile_tags {tags} with stage.max_num_tiles {most}: exported models know `none`, and "
        "`1d` of at most 9 tiles; serve this checkpoint with `nvlm generate`"
    )


def serving_differences(config: RunConfig) -> list[str]:
    """What other servers for NVLM-D assume that differs from how this model was trained.

    The modelling files inside the export follow the training in all of these.
    """
    stage, projector = config.stage, config.model.projector
    differences = []
    if projector.norm_epsilon != RELEASED_PROJECTOR_EPSILON:
        differences.append(
            f"the projector's LayerNorm was trained with epsilon {projector.norm_epsilon:g}; "
            f"servers that know only the released NVLM-D use {RELEASED_PROJECTOR_EPSILON:g}"
        )
    if projector.ffn_hidden_size != config.model.language.ffn_hidden_size:
        differences.append(
            f"the projector is {projector.ffn_hidden_size} wide; other servers build it as wide as "
            f"the language model's feed-forward, {config.model.language.ffn_hidden_size}"
        )
    if stage.image_boundary != "merged":
        differences.append(
            "`<Image>` and the first tile tag were tokenised apart; other servers tokenise "
            "`<Image><tile_1>` as one text"
        )
    if stage.tile_tags != "1d" or not stage.use_thumbnail:
        differences.append(
            f"trained with tile_tags {stage.tile_tags} and use_thumbnail "
            f"{str(stage.use_thumbnail).lower()}; other servers write 1-D tags and a thumbnail"
        )
    return differences
