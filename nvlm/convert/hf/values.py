"""What the `config.json` of an export says of a model: in the words of Hugging Face's classes."""

from __future__ import annotations

from typing import Any

from nvlm.config.connectors.mlp import MLPConfig
from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.settings import EncoderSettings
from nvlm.config.rope_scaling import RopeScaling
from nvlm.config.schema import LanguageConfig, ModelConfig, RunConfig
from nvlm.convert.hf.config_keys import INTERN_VIT, QWEN2, QWEN3
from nvlm.convert.hf.expert_keys import EXPERT_KEYS, setting_of

# `norm_type` of InternViT's configuration, by our `model.vision.normalization`.
NORM_TYPES = {"RMSNorm": "rms_norm", "LayerNorm": "layer_norm"}


def vision_values(vision: InternViTConfig) -> dict[str, Any]:
    """What InternViT's `config.json` says of a model like `vision`."""
    values = {key: getattr(vision, setting) for key, setting in INTERN_VIT.settings.items()}
    values |= {"norm_type": NORM_TYPES[vision.normalization], "hidden_act": "gelu"}
    if vision.feature_layers:
        values["feature_layers"] = list(vision.feature_layers)
    return values


def plain_vision_values(vision: EncoderSettings) -> dict[str, Any]:
    """What an export's `vision_config` says of an encoder in plain torch."""
    encoder = {key: value for key, value in vision.model_dump().items() if key != "init_std"}
    return {
        "encoder": encoder,
        "module": vision.module_settings(),
        "image_size": vision.image_size,
        "num_patches": vision.num_patches,
        "hidden_size": vision.feature_size,
    }


def side_by_side_values(vision: EncoderSettings) -> dict[str, Any]:
    """What an export's `vision_config` says of several encoders, besides what each is."""
    return {
        "image_size": vision.image_size,
        "num_patches": vision.num_patches,
        "hidden_size": vision.feature_size,
    }


def vision_architecture(vision: EncoderSettings) -> str:
    return {
        "internvit": "InternVisionModel",
        "timm": "TimmVisionModel",
        "side_by_side": "SideBySideVisionModel",
    }[vision.kind]


def cross_attention_values(model: ModelConfig) -> dict[str, Any]:
    """What an NVLM-X's or NVLM-H's `config.json` says of its cross-attention; of NVLM-D's none."""
    if model.cross_attention is None:
        return {}
    return {
        "cross_attention_interval": model.cross_attention.layer_interval,
        "cross_attention_num_key_value_heads": model.num_cross_attention_groups,
    }


def connector_values(model: ModelConfig) -> dict[str, Any]:
    """What an NVLM-D's `config.json` says of the connector of `model`: the released keys of an MLP,
    all settings of another kind."""
    connector = model.connector
    if isinstance(connector, MLPConfig):
        return {
            "downsample_ratio": 1 / connector.pixel_shuffle,
            "projector_hidden_size": connector.ffn_hidden_size,
            "projector_layer_norm_eps": connector.norm_epsilon,
        }
    settings = {key: value for key, value in connector.model_dump().items() if key != "init_std"}
    return {"connector": {**settings, "num_tokens": model.num_tokens_per_tile}}


def language_values(language: LanguageConfig) -> dict[str, Any]:
    """What Qwen2's, Qwen3's or Llama's `config.json` says of a model like `language`.

    Each key that changes what transformers computes is there, whatever its class's default.
    """
    scaling = rope_scaling_values(language.rope_scaling)
    values = {
        **{key: getattr(language, setting) for key, setting in QWEN2.settings.items()},
        **_expert_values(language),
        "attention_bias": language.qkv_bias,
        "mlp_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": language.max_position_embeddings,
        # Once for current transformers, once for earlier readers.
        "rope_parameters": {"rope_theta": language.rope_base, "rope_type": "default"} | scaling,
        "rope_theta": language.rope_base,
        "sliding_window": None,
        "tie_word_embeddings": language.share_embeddings_and_output_weights,
        "use_sliding_window": False,
    }
    if scaling:
        values["rope_scaling"] = scaling
    if language.qkv_bias or language.qk_layernorm or language.moe:
        values["layer_types"] = ["full_attention"] * language.num_layers
        values["max_window_layers"] = language.num_layers
    return values


def _expert_values(language: LanguageConfig) -> dict[str, Any]:
    if language.moe is None:
        return {}
    keys = EXPERT_KEYS[language_architecture(language)]
    own = [key for key in keys.settings if key not in QWEN2.settings]
    fixed = {key: keys.fixed[key][0] for key in keys.fixed if key not in QWEN3.fixed}
    return {**{key: setting_of(language, keys.settings[key]) for key in own}, **fixed}


def prompt_values(config: RunConfig) -> dict[str, Any]:
    """What an NVLM-D's `config.json` says of the tiles and prompts of `config`."""
    stage = config.stage
    return {
        "dynamic_image_size": stage.max_num_tiles > 1,
        "max_dynamic_patch": stage.max_num_tiles,
        "min_dynamic_patch": 1,
        # Of a single tile there never is one; servers take its tag from this key.
        "use_thumbnail": stage.use_thumbnail or stage.max_num_tiles == 1,
        "image_boundary": stage.image_boundary,
        "image_token": config.model.image_token,
        "system_message": stage.system_message,
        "tile_tags": stage.tile_tags,
    }


def rope_scaling_values(scaling: RopeScaling | None) -> dict[str, Any]:
    """What `rope_scaling` says; empty without one."""
    if scaling is None:
        return {}
    values = scaling.model_dump(exclude_none=True)
    return {"rope_type": values.pop("kind"), **values}


def language_architecture(language: LanguageConfig) -> str:
    if language.moe is not None:
        return "Qwen3MoeForCausalLM" if language.qk_layernorm else "Qwen2MoeForCausalLM"
    if language.qk_layernorm:
        return "Qwen3ForCausalLM"
    return "Qwen2ForCausalLM" if language.qkv_bias else "LlamaForCausalLM"
