"""Whether a Hugging Face folder holds the model that a configuration describes.

Every key of the folder's `config.json` is looked at (config_keys.py): it must agree
with the configuration, or be known to change nothing. A key that is missing has the value that its
configuration class gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.settings import EncoderSettings
from nvlm.config.encoders.timm import TimmConfig
from nvlm.config.schema import LanguageConfig, ModelConfig, RunConfig
from nvlm.convert.hf.comparison import (
    equal,
    is_full_attention,
    read_rope,
    rope_problems,
    shown,
    unknown_keys,
    value_differences,
    with_defaults,
)
from nvlm.convert.hf.config_keys import (
    CONNECTOR_KEYS,
    FUSIONS,
    INTERN_VIT,
    LLAMA,
    MISTRAL,
    NVLM_D,
    NVLM_FUSED,
    PLAIN_VISION,
    QWEN2,
    QWEN3,
    SIDE_BY_SIDE,
    Keys,
)
from nvlm.convert.hf.encoders import architecture_of, vision_problems
from nvlm.convert.hf.expert_keys import EXPERT_KEYS, setting_of, with_num_experts
from nvlm.convert.hf.folder import CONFIG_FILE, FolderPart, HfFolder
from nvlm.convert.hf.timm_folder import check_timm, interpolation_note, is_timm_folder
from nvlm.convert.hf.values import (
    connector_values,
    language_architecture,
    prompt_values,
    rope_scaling_values,
    vision_architecture,
    vision_values,
)
from nvlm.errors import ConvertError

# A folder of one model, or the part of a folder that describes one of its models.
ModelFolder = HfFolder | FolderPart

_LANGUAGE_KEYS = {
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    **EXPERT_KEYS,
}
LANGUAGE_ARCHITECTURES = tuple(_LANGUAGE_KEYS)
# Architecture -> those that, with the values that are accepted of them, compute the same.
_ALSO = {"LlamaForCausalLM": ("MistralForCausalLM",)}
_NVLM_KEYS = {
    name: NVLM_D if fusion == "decoder_only" else NVLM_FUSED for name, fusion in FUSIONS.items()
}
_ALL_KEYS = {
    **_LANGUAGE_KEYS,
    "InternVisionModel": INTERN_VIT,
    "TimmVisionModel": PLAIN_VISION,
    "SideBySideVisionModel": SIDE_BY_SIDE,
    **_NVLM_KEYS,
}
MODEL_TYPES = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}


# ------------------------------------------------------------------------------------- the checks


def check_vision(folder: ModelFolder, vision: EncoderSettings, option: str = "--vision") -> None:
    """Raise `ConvertError` unless `folder` is an encoder that computes what `vision` computes.

    `option` is what the folder was given as, for the message.
    """
    if isinstance(vision, TimmConfig) and isinstance(folder, HfFolder):
        check_timm(folder, vision, option)
        return
    _check_architecture(folder, vision_architecture(vision), option)
    _raise(folder, "model.vision", vision_problems(_stated(folder, vision), vision))


def check_language(
    folder: ModelFolder, language: LanguageConfig, option: str = "--language"
) -> None:
    """Raise `ConvertError` unless `folder` is a decoder that computes what `language` does.

    A folder with tied embeddings fits a configuration with separate ones (both then start equal),
    not the other way round.
    """
    wanted = language_architecture(language)
    _check_architecture(folder, wanted, option)
    architecture = architecture_of(folder.config) or wanted
    found = folder.config.get("model_type", MODEL_TYPES[architecture])
    # Within an NVLM-D only the architecture counts (the released file says `llama` of its Qwen2).
    if isinstance(folder, HfFolder) and found != MODEL_TYPES[architecture]:
        raise ConvertError(
            f"{folder.path / CONFIG_FILE}: model_type {shown(found)} beside architectures "
            f"[{architecture!r}]: transformers opens another model than the architecture says"
        )
    _raise(folder, "model.language", language_problems(folder.config, language))


def check_released(folder: HfFolder, model: ModelConfig) -> None:
    """Raise `ConvertError` unless `folder` is an NVLM that computes what `model` computes.

    Shapes say whether the projector fits; `check_tensors` compares them.
    """
    _check_architecture(folder, nvlm_architecture(model), "--nvlm")
    _raise(folder, "model", released_problems(folder.config, model))
    vision, language = _parts(folder)
    check_vision(vision, model.vision, "--nvlm (vision_config)")
    check_language(language, model.language, "--nvlm (llm_config)")


def notes(folder: ModelFolder, config: RunConfig, part: str = "") -> list[str]:
    """What of a fitting folder is not carried, though its model computes the same; clauses.

    `part`: of a folder of one of several encoders which one (`model.vision.parts`).
    """
    file = folder.path / CONFIG_FILE
    architecture = architecture_of(folder.config)
    if is_timm_folder(folder.config):
        assert isinstance(folder, HfFolder)
        note = interpolation_note(folder, config.model, part)
        return [] if note is None else [note]
    if architecture in ("TimmVisionModel", "SideBySideVisionModel"):
        return []
    if architecture in FUSIONS:
        assert isinstance(folder, HfFolder)
        found = [note for part in _parts(folder) for note in notes(part, config)]
        differences = [
            f"{key} {shown(folder.config[key])} ({shown(value)} in this configuration)"
            for key, value in prompt_values(config).items()
            if key in folder.config and not equal(folder.config[key], value)
        ]
        if "image_boundary" not in folder.config and config.stage.image_boundary != "separate":
            found.append(
                f"{file}: says no image_boundary, as the released NVLM-D-72B, which was trained "
                f"with `separate`; this configuration says {config.stage.image_boundary}: other "
                "tokens around each image than it has seen (stage.image_boundary=separate keeps "
                "them)"
            )
        if differences:
            found.append(
                f"{file}: was made for other tiles or prompts than this configuration's stage: "
                + ", ".join(differences)
            )
        return found
    keys = _LANGUAGE_KEYS.get(architecture or "", INTERN_VIT)
    found = [
        f"{file}: {key} {shown(folder.config[key])} is for training, and not taken over"
        for key, value in keys.training.items()
        if folder.config.get(key) is not None and not equal(folder.config[key], value)
    ]
    if keys is INTERN_VIT:
        return found
    positions = with_defaults(folder.config, ["max_position_embeddings"], architecture)
    positions = positions["max_position_embeddings"]
    ours = config.model.language.max_position_embeddings
    if not equal(positions, ours):
        found.append(
            f"{file}: max_position_embeddings is {shown(positions)}, and "
            f"model.language.max_position_embeddings {ours}: exports will say the latter"
        )
    if folder.config.get("auto_map"):
        found.append(f"{file}: auto_map names code of the folder's own, which is not run here")
    return found


def folder_problems(folder: HfFolder, model: ModelConfig) -> list[str]:
    """What of the `config.json` of a folder of ours does not fit `model`, a clause each."""
    architecture = architecture_of(folder.config)
    if architecture in FUSIONS:
        if FUSIONS[architecture] != model.fusion:
            return [f"architectures is [{architecture!r}], and model.fusion {model.fusion}"]
        vision, language = _parts(folder)
        found, wanted = architecture_of(language.config), language_architecture(model.language)
        encoders = architecture_of(vision.config), vision_architecture(model.vision)
        if encoders[0] != encoders[1]:
            return [f"vision_config.architectures is {shown(encoders[0])}"]
        return [
            *([] if found == wanted else [f"llm_config.architectures is {shown(found)}"]),
            *released_problems(folder.config, model),
            *vision_problems(vision.config, model.vision),
            *language_problems(language.config, model.language),
        ]
    if architecture == "InternVisionModel":
        vision = model.vision.parts[part_of_folder(folder, model)]
        return vision_problems(_stated(folder, vision), vision)
    return language_problems(folder.config, model.language)


def part_of_folder(folder: HfFolder, model: ModelConfig) -> str:
    """Which of the encoders in `model.vision.parts` a folder is of: the first that it fits, or else
    the first of its kind."""
    kind = TimmConfig if is_timm_folder(folder.config) else InternViTConfig
    fitting = [part for part, one in model.vision.parts.items() if isinstance(one, kind)]
    for part in fitting:
        try:
            check_vision(folder, model.vision.parts[part])
        except ConvertError:
            continue
        return part
    return next(iter(fitting or model.vision.parts))


def folders_differ(left: HfFolder, right: HfFolder) -> list[str]:
    """What two folders of one architecture compute differently by their `config.json`; clauses."""
    architecture = architecture_of(left.config)
    if architecture != architecture_of(right.config):
        return [f"architectures {shown(architecture)} and {shown(architecture_of(right.config))}"]
    found = _parts_differ(left.config, right.config, architecture)
    if architecture not in FUSIONS:
        return found
    for x, y in zip(_parts(left), _parts(right), strict=True):
        if architecture_of(x.config) != architecture_of(y.config):
            found.append("architectures of the language models")
        else:
            found += _parts_differ(x.config, y.config, architecture_of(x.config))
    return found


def _parts_differ(
    left: Mapping[str, Any], right: Mapping[str, Any], architecture: str | None
) -> list[str]:
    keys = _ALL_KEYS.get(architecture or "")
    if keys is None:
        return []
    names = [*keys.settings, *keys.fixed]
    names += sorted(key for key in left.keys() | right.keys() if not keys.is_known(key))
    x, y = (with_defaults(side, names, architecture) for side in (left, right))
    if "rope_theta" in keys.rules:
        x["rotary embeddings"], y["rotary embeddings"] = read_rope(left), read_rope(right)
    if "feature_layers" in keys.rules:
        x["feature_layers"], y["feature_layers"] = (
            side.get("feature_layers") for side in (left, right)
        )
    if "encoders" in keys.rules:
        x["encoders"], y["encoders"] = left.get("encoders"), right.get("encoders")
    if "connector" in keys.rules:
        x |= {key: left.get(key, default) for key, default in CONNECTOR_KEYS.items()}
        y |= {key: right.get(key, default) for key, default in CONNECTOR_KEYS.items()}
    return [
        f"{key} is {shown(x[key])} in A, {shown(y[key])} in B"
        for key in x
        if not equal(x[key], y[key])
    ]


# ----------------------------------------------------------------------------------- the problems


def _stated(folder: ModelFolder, vision: EncoderSettings) -> Mapping[str, Any]:
    """What `folder` says of its encoder; an InternViT alone leaves the layers that the connector
    reads to the configuration."""
    found = folder.config
    is_alone = isinstance(folder, HfFolder) and found.get("feature_layers") is None
    if is_alone and isinstance(vision, InternViTConfig):
        return {**found, "feature_layers": vision_values(vision).get("feature_layers")}
    return found


def language_problems(found: Mapping[str, Any], language: LanguageConfig) -> list[str]:
    """What of a decoder's `config.json` does not fit `language`, a clause each."""
    architecture = language_architecture(language)
    if architecture_of(found) in _ALSO.get(architecture, ()):
        architecture = str(architecture_of(found))
    keys = _LANGUAGE_KEYS[architecture]
    found = with_num_experts(dict(found))
    names = [*keys.settings, *keys.fixed, "tie_word_embeddings"]
    values = with_defaults(found, names, architecture)
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if values["head_dim"] is None:
        values["head_dim"] = language.head_dim
    wanted = {key: setting_of(language, setting) for key, setting in keys.settings.items()}
    problems = [*unknown_keys(found, keys), *value_differences(values, wanted, keys)]
    problems += rope_problems(found, language.rope_base, rope_scaling_values(language.rope_scaling))
    if not is_full_attention(found.get("layer_types"), language.num_layers):
        problems.append(
            f"layer_types is {shown(found['layer_types'])}, expected full_attention "
            f"{language.num_layers} times"
        )
    tied = values["tie_word_embeddings"]
    if not isinstance(tied, bool):
        problems.append(f"tie_word_embeddings is {shown(tied)}, expected true or false")
    elif language.share_embeddings_and_output_weights and not tied:
        problems.append(
            "tie_word_embeddings is false, so this model has an output layer of its own, which "
            "model.language.share_embeddings_and_output_weights: true would drop; set it to false"
        )
    return problems


def released_problems(found: Mapping[str, Any], model: ModelConfig) -> list[str]:
    """What of an NVLM's `config.json`, its two parts left aside, does not fit `model`."""
    keys: Keys = _NVLM_KEYS[nvlm_architecture(model)]
    wanted = {key: attrgetter(setting)(model) for key, setting in keys.settings.items()}
    # Absent: as large as vision_config says.
    stated = {key: value for key, value in wanted.items() if found.get(key) is not None}
    values = {
        **{key: accepted[0] for key, accepted in keys.fixed.items()},
        # The released class takes version 1 where none is named, ours version 2.
        "ps_version": None,
        **found,
    }
    return [
        *_several_connectors(model),
        *unknown_keys(found, keys),
        *value_differences(values, stated, keys),
        *_connector_problems(found, model),
    ]


def _several_connectors(model: ModelConfig) -> list[str]:
    """Why no published NVLM is a model whose encoder layers have connectors of their own."""
    if model.num_connectors == 1:
        return []
    in_turn = "model.cross_attention.levels in_turn"
    key = in_turn if model.reads_levels_in_turn else "model.deepstack levels"
    return [f"is no model with {key}"]


def _connector_problems(found: Mapping[str, Any], model: ModelConfig) -> list[str]:
    """Of the connector. An MLP as released says neither its width, that of the language model
    (compared there), nor its epsilon (see `projector_epsilon_difference`)."""
    values = {key: found.get(key, default) for key, default in CONNECTOR_KEYS.items()}
    return [
        f"{key} is {shown(values[key])}, expected {wanted!r}"
        for key, wanted in ({"connector": None} | connector_values(model)).items()
        if not (values[key] is None and key.startswith("projector_"))
        and not equal(values[key], wanted)
    ]


def nvlm_architecture(model: ModelConfig) -> str:
    """What an export of `model` calls itself."""
    return next(name for name, fusion in FUSIONS.items() if fusion == model.fusion)


def _parts(folder: HfFolder) -> tuple[FolderPart, FolderPart]:
    """The vision encoder and the language model of an NVLM-D."""
    vision = folder.part("vision_config")
    vision.config.setdefault("architectures", ["InternVisionModel"])
    return vision, folder.part("llm_config")


def _check_architecture(folder: ModelFolder, wanted: str, option: str) -> None:
    if architecture_of(folder.config) not in (wanted, *_ALSO.get(wanted, ())):
        raise ConvertError(
            f"{folder.path / CONFIG_FILE}: architectures "
            f"{shown(folder.config.get('architectures') or [])} (model_type "
            f"{shown(folder.config.get('model_type'))}), but {option} needs [{wanted!r}]"
        )


def _raise(folder: ModelFolder, section: str, problems: list[str]) -> None:
    if problems:
        raise ConvertError(
            f"{folder.path / CONFIG_FILE}: does not fit {section} of the configuration: "
            f"{'; '.join(problems)}"
        )
