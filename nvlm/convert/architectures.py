"""Whether a Hugging Face folder holds the model that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvlm.config.schema import LanguageConfig, ModelConfig, VisionConfig
from nvlm.convert.hf_folder import CONFIG_FILE, FolderPart, HfFolder
from nvlm.errors import ConvertError

# A folder of one model, or the part of a folder that describes one of its models.
ModelFolder = HfFolder | FolderPart

# `norm_type` of InternViT's configuration, by our `model.vision.normalization`.
NORM_TYPES = {"RMSNorm": "rms_norm", "LayerNorm": "layer_norm"}


def check_vision(folder: ModelFolder, vision: VisionConfig, option: str = "--vision") -> None:
    """Raise `ConvertError` unless `folder` is an InternViT of the sizes and variant in `vision`.

    `option` is what the folder was given as, for the message.
    """
    _check_architecture(folder, ["InternVisionModel"], option)
    # Published folders leave out what the configuration class has as its default.
    found = {"norm_type": "rms_norm", **folder.config}
    _check_values(folder, found, vision_values(vision), "model.vision")


def vision_values(vision: VisionConfig) -> dict[str, Any]:
    """What InternViT's `config.json` says of a model like `vision`."""
    return {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_hidden_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_attention_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "layer_norm_eps": vision.norm_epsilon,
        "norm_type": NORM_TYPES[vision.normalization],
        "qk_normalization": vision.qk_layernorm,
        "qkv_bias": vision.qkv_bias,
        "hidden_act": "gelu",
    }


def check_language(
    folder: ModelFolder, language: LanguageConfig, option: str = "--language"
) -> None:
    """Raise `ConvertError` unless `folder` is a Qwen2 (or Llama) of the sizes in `language`.

    A folder with tied embeddings fits a configuration with separate ones (both then start equal),
    not the other way round.
    """
    _check_architecture(folder, [language_architecture(language)], option)
    wanted = {
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_query_groups,
        "vocab_size": language.vocab_size,
        "rms_norm_eps": language.norm_epsilon,
        "rope_theta": language.rope_base,
        "hidden_act": "silu",
    }
    path = folder.path / CONFIG_FILE
    rope = folder.config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        found = {**folder.config, "rope_theta": rope["rope_theta"]}
    else:
        found = folder.config
    scaling = rope.get("rope_type") or (folder.config.get("rope_scaling") or {}).get("type")
    if scaling not in (None, "default"):
        raise ConvertError(f"{path}: rotary scaling {scaling!r} is not supported")
    if folder.config.get("use_sliding_window"):
        raise ConvertError(f"{path}: use_sliding_window is not supported")
    _check_values(folder, found, wanted, "model.language")
    if language.share_embeddings_and_output_weights and not folder.config.get(
        "tie_word_embeddings"
    ):
        raise ConvertError(
            f"{path}: tie_word_embeddings is false, so this model has an output layer of its own, "
            "which model.language.share_embeddings_and_output_weights: true would drop; set it to "
            "false"
        )


def language_architecture(language: LanguageConfig) -> str:
    return "Qwen2ForCausalLM" if language.qkv_bias else "LlamaForCausalLM"


def check_released(folder: HfFolder, model: ModelConfig) -> None:
    """Raise `ConvertError` unless `folder` is an NVLM-D as released, of the sizes in `model`.

    Shapes say whether the projector fits; `check_tensors` compares them.
    """
    _check_architecture(folder, ["NVLM_D"], "--nvlm")
    wanted = {"downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1}
    _check_values(folder, folder.config, wanted, "model")
    vision = folder.part("vision_config")
    vision.config.setdefault("architectures", ["InternVisionModel"])
    check_vision(vision, model.vision, "--nvlm (vision_config)")
    check_language(folder.part("llm_config"), model.language, "--nvlm (llm_config)")


def _check_architecture(folder: ModelFolder, wanted: list[str], option: str) -> None:
    found = folder.config.get("architectures") or []
    if found != wanted:
        raise ConvertError(
            f"{folder.path / CONFIG_FILE}: architectures {found} (model_type "
            f"{folder.config.get('model_type')!r}), but {option} needs {wanted}"
        )


def _check_values(
    folder: ModelFolder, found: Mapping[str, Any], wanted: Mapping[str, Any], section: str
) -> None:
    differences = [
        f"{key} is {found.get(key)!r}, expected {value!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differences:
        raise ConvertError(
            f"{folder.path / CONFIG_FILE}: does not fit {section} of the configuration: "
            f"{'; '.join(differences)}"
        )
