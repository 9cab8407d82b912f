"""Whether a Hugging Face folder holds the model that a configuration describes.

Every key of the folder's `config.json` is looked at (config_keys.py): it must agree
with the configuration, or be known to change nothing. A key that is missing has the value that its
configuration class gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from operator import attrgetter
from typing import Any

from nvlm.config.schema import LanguageConfig, ModelConfig, RunConfig, VisionConfig
from nvlm.convert.hf.config_keys import INTERN_VIT, LLAMA, NVLM_D, QWEN2, ROPE_KEYS, Keys
from nvlm.convert.hf.folder import CONFIG_FILE, FolderPart, HfFolder
from nvlm.errors import ConvertError

# A folder of one model, or the part of a folder that describes one of its models.
ModelFolder = HfFolder | FolderPart

# `norm_type` of InternViT's configuration, by our `model.vision.normalization`.
NORM_TYPES = {"RMSNorm": "rms_norm", "LayerNorm": "layer_norm"}

_LANGUAGE_KEYS = {"Qwen2ForCausalLM": QWEN2, "LlamaForCausalLM": LLAMA}
_ALL_KEYS = {**_LANGUAGE_KEYS, "InternVisionModel": INTERN_VIT, "NVLM_D": NVLM_D}
_MODEL_TYPES = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}


# ------------------------------------------------------------------------------------- the checks


def check_vision(folder: ModelFolder, vision: VisionConfig, option: str = "--vision") -> None:
    """Raise `ConvertError` unless `folder` is an InternViT that computes what `vision` computes.

    `option` is what the folder was given as, for the message.
    """
    _check_architecture(folder, "InternVisionModel", option)
    _raise(folder, "model.vision", vision_problems(folder.config, vision))


def check_language(
    folder: ModelFolder, language: LanguageConfig, option: str = "--language"
) -> None:
    """Raise `ConvertError` unless `folder` is a Qwen2 (or Llama) computing what `language` does.

    A folder with tied embeddings fits a configuration with separate ones (both then start equal),
    not the other way round.
    """
    architecture = language_architecture(language)
    _check_architecture(folder, architecture, option)
    found = folder.config.get("model_type", _MODEL_TYPES[architecture])
    # Within an NVLM-D only the architecture counts (the released file says `llama` of its Qwen2).
    if isinstance(folder, HfFolder) and found != _MODEL_TYPES[architecture]:
        raise ConvertError(
            f"{folder.path / CONFIG_FILE}: model_type {_shown(found)} beside architectures "
            f"[{architecture!r}]: transformers opens another model than the architecture says"
        )
    _raise(folder, "model.language", language_problems(folder.config, language))


def check_released(folder: HfFolder, model: ModelConfig) -> None:
    """Raise `ConvertError` unless `folder` is an NVLM-D that computes what `model` computes.

    Shapes say whether the projector fits; `check_tensors` compares them.
    """
    _check_architecture(folder, "NVLM_D", "--nvlm")
    _raise(folder, "model", released_problems(folder.config, model))
    vision, language = _parts(folder)
    check_vision(vision, model.vision, "--nvlm (vision_config)")
    check_language(language, model.language, "--nvlm (llm_config)")


def notes(folder: ModelFolder, config: RunConfig) -> list[str]:
    """What of a fitting folder is not carried, though its model computes the same; clauses."""
    file = folder.path / CONFIG_FILE
    architecture = architecture_of(folder.config)
    if architecture == "NVLM_D":
        assert isinstance(folder, HfFolder)
        found = [note for part in _parts(folder) for note in notes(part, config)]
        differences = [
            f"{key} {_shown(folder.config[key])} ({_shown(value)} in this configuration)"
            for key, value in prompt_values(config).items()
            if key in folder.config and not _equal(folder.config[key], value)
        ]
        if differences:
            found.append(
                f"{file}: was made for other tiles or prompts than this configuration's stage: "
                + ", ".join(differences)
            )
        return found
    keys = _LANGUAGE_KEYS.get(architecture or "", INTERN_VIT)
    found = [
        f"{file}: {key} {_shown(folder.config[key])} is for training, and nvlm trains without"
        for key, value in keys.training.items()
        if folder.config.get(key) is not None and not _equal(folder.config[key], value)
    ]
    if keys is INTERN_VIT:
        return found
    positions = _with_defaults(folder.config, ["max_position_embeddings"], architecture)
    positions = positions["max_position_embeddings"]
    ours = config.model.language.max_position_embeddings
    if not _equal(positions, ours):
        found.append(
            f"{file}: max_position_embeddings is {_shown(positions)}, and "
            f"model.language.max_position_embeddings {ours}: exports will say the latter"
        )
    if folder.config.get("auto_map"):
        found.append(f"{file}: auto_map names code of the folder's own, which is not run here")
    return found


def folder_problems(folder: HfFolder, model: ModelConfig) -> list[str]:
    """What of the `config.json` of a folder of ours does not fit `model`, a clause each."""
    architecture = architecture_of(folder.config)
    if architecture == "NVLM_D":
        vision, language = _parts(folder)
        found, wanted = architecture_of(language.config), language_architecture(model.language)
        return [
            *([] if found == wanted else [f"llm_config.architectures is {_shown(found)}"]),
            *released_problems(folder.config, model),
            *vision_problems(vision.config, model.vision),
            *language_problems(language.config, model.language),
        ]
    if architecture == "InternVisionModel":
        return vision_problems(folder.config, model.vision)
    return language_problems(folder.config, model.language)


def folders_differ(left: HfFolder, right: HfFolder) -> list[str]:
    """What two folders of one architecture compute differently by their `config.json`; clauses."""
    architecture = architecture_of(left.config)
    if architecture != architecture_of(right.config):
        return [f"architectures {_shown(architecture)} and {_shown(architecture_of(right.config))}"]
    found = _parts_differ(left.config, right.config, architecture)
    if architecture != "NVLM_D":
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
    x, y = (_with_defaults(side, names, architecture) for side in (left, right))
    if "rope_theta" in keys.rules:
        x["rotary embeddings"], y["rotary embeddings"] = _rope(left), _rope(right)
    return [
        f"{key} is {_shown(x[key])} in A, {_shown(y[key])} in B"
        for key in x
        if not _equal(x[key], y[key])
    ]


# ----------------------------------------------------------------------------------- the problems


def vision_problems(found: Mapping[str, Any], vision: VisionConfig) -> list[str]:
    """What of an InternViT's `config.json` does not fit `vision`, a clause each."""
    keys = INTERN_VIT
    values = _with_defaults(found, [*keys.settings, *keys.fixed], "InternVisionModel")
    ours = vision_values(vision)
    wanted = {key: ours[key] for key in keys.settings}
    return [*_unknown(found, keys), *_differences(values, wanted, keys)]


def language_problems(found: Mapping[str, Any], language: LanguageConfig) -> list[str]:
    """What of a Qwen2's or Llama's `config.json` does not fit `language`, a clause each."""
    architecture = language_architecture(language)
    keys = _LANGUAGE_KEYS[architecture]
    names = [*keys.settings, *keys.fixed, "tie_word_embeddings"]
    values = _with_defaults(found, names, architecture)
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if values["head_dim"] is None:
        values["head_dim"] = language.head_dim
    wanted = {key: getattr(language, setting) for key, setting in keys.settings.items()}
    problems = [*_unknown(found, keys), *_differences(values, wanted, keys)]
    problems += _rope_problems(found, language.rope_base)
    if not _is_full_attention(found.get("layer_types"), language.num_layers):
        problems.append(
            f"layer_types is {_shown(found['layer_types'])}, expected full_attention "
            f"{language.num_layers} times"
        )
    tied = values["tie_word_embeddings"]
    if not isinstance(tied, bool):
        problems.append(f"tie_word_embeddings is {_shown(tied)}, expected true or false")
    elif language.share_embeddings_and_output_weights and not tied:
        problems.append(
            "tie_word_embeddings is false, so this model has an output layer of its own, which "
            "model.language.share_embeddings_and_output_weights: true would drop; set it to false"
        )
    return problems


def released_problems(found: Mapping[str, Any], model: ModelConfig) -> list[str]:
    """What of an NVLM-D's `config.json`, its two parts left aside, does not fit `model`."""
    keys = NVLM_D
    wanted = {key: attrgetter(setting)(model) for key, setting in keys.settings.items()}
    # Absent: as large as vision_config says, as wide as llm_config says (compared there), and the
    # epsilon of the released modelling files (see `projector_epsilon_difference`).
    stated = {key: value for key, value in wanted.items() if found.get(key) is not None}
    values = {
        **{key: accepted[0] for key, accepted in keys.fixed.items()},
        # The released class takes version 1 where none is named, ours version 2.
        "ps_version": None,
        **found,
    }
    return [*_unknown(found, keys), *_differences(values, stated, keys)]


# ------------------------------------------------------------------------------- what exports say


def vision_values(vision: VisionConfig) -> dict[str, Any]:
    """What InternViT's `config.json` says of a model like `vision`."""
    values = {key: getattr(vision, setting) for key, setting in INTERN_VIT.settings.items()}
    return {**values, "norm_type": NORM_TYPES[vision.normalization], "hidden_act": "gelu"}


def language_values(language: LanguageConfig) -> dict[str, Any]:
    """What Qwen2's or Llama's `config.json` says of a model like `language`.

    Each key that changes what transformers computes is there, whatever its class's default.
    """
    values = {
        **{key: getattr(language, setting) for key, setting in QWEN2.settings.items()},
        "attention_bias": language.qkv_bias,
        "mlp_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": language.max_position_embeddings,
        # Once for current transformers, once for earlier readers.
        "rope_parameters": {"rope_theta": language.rope_base, "rope_type": "default"},
        "rope_theta": language.rope_base,
        "sliding_window": None,
        "tie_word_embeddings": language.share_embeddings_and_output_weights,
        "use_sliding_window": False,
    }
    if language.qkv_bias:
        values["layer_types"] = ["full_attention"] * language.num_layers
        values["max_window_layers"] = language.num_layers
    return values


def prompt_values(config: RunConfig) -> dict[str, Any]:
    """What an NVLM-D's `config.json` says of the tiles and prompts of `config`."""
    stage = config.stage
    return {
        "dynamic_image_size": stage.max_num_tiles > 1,
        "max_dynamic_patch": stage.max_num_tiles,
        "min_dynamic_patch": 1,
        "template": "chatml",
        # Of a single tile there never is one; servers take its tag from this key.
        "use_thumbnail": stage.use_thumbnail or stage.max_num_tiles == 1,
        "image_boundary": stage.image_boundary,
        "image_token": config.model.image_token,
        "system_message": stage.system_message,
        "tile_tags": stage.tile_tags,
    }


def language_architecture(language: LanguageConfig) -> str:
    return "Qwen2ForCausalLM" if language.qkv_bias else "LlamaForCausalLM"


# ---------------------------------------------------------------------------------------- details


def architecture_of(found: Mapping[str, Any]) -> str | None:
    """The one architecture that a `config.json` names."""
    named = found.get("architectures")
    is_one = isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)
    return named[0] if is_one else None


def _parts(folder: HfFolder) -> tuple[FolderPart, FolderPart]:
    """The vision encoder and the language model of an NVLM-D."""
    vision = folder.part("vision_config")
    vision.config.setdefault("architectures", ["InternVisionModel"])
    return vision, folder.part("llm_config")


def _check_architecture(folder: ModelFolder, wanted: str, option: str) -> None:
    if architecture_of(folder.config) != wanted:
        raise ConvertError(
            f"{folder.path / CONFIG_FILE}: architectures "
            f"{_shown(folder.config.get('architectures') or [])} (model_type "
            f"{_shown(folder.config.get('model_type'))}), but {option} needs [{wanted!r}]"
        )


def _raise(folder: ModelFolder, section: str, problems: list[str]) -> None:
    if problems:
        raise ConvertError(
            f"{folder.path / CONFIG_FILE}: does not fit {section} of the configuration: "
            f"{'; '.join(problems)}"
        )


def _with_defaults(
    found: Mapping[str, Any], keys: list[str], architecture: str | None
) -> dict[str, Any]:
    """The values of `keys`; of missing ones, what the configuration class has (None: nothing)."""
    if all(key in found for key in keys):
        return {key: found[key] for key in keys}
    return {
        key: found[key] if key in found else _class_defaults(architecture).get(key) for key in keys
    }


@cache
def _class_defaults(architecture: str | None) -> dict[str, Any]:
    from nvlm import platform

    platform.hide_unfitting_torchvision()
    from transformers import LlamaConfig, Qwen2Config

    from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig

    classes = {"Qwen2ForCausalLM": Qwen2Config, "LlamaForCausalLM": LlamaConfig}
    if architecture not in classes and architecture != "InternVisionModel":
        return {}
    return vars(classes.get(architecture, InternVisionConfig)())


def _unknown(found: Mapping[str, Any], keys: Keys) -> list[str]:
    """A clause about the keys that are in no table. Those set to null say nothing."""
    unknown = [
        f"{key if key.isprintable() else ascii(key)}: {_shown(value)}"
        for key, value in found.items()
        if value is not None and not keys.is_known(key)
    ]
    if not unknown:
        return []
    return [
        f"has keys that are not known here and may change what the model computes: "
        f"{', '.join(unknown)} (where they do not, take them out of the file)"
    ]


def _differences(values: Mapping[str, Any], settings: Mapping[str, Any], keys: Keys) -> list[str]:
    """Clauses about the values that are not `settings`, nor one of the fixed ones."""
    problems = [
        f"{key} is {_shown(values[key])}, expected {wanted!r}"
        for key, wanted in settings.items()
        if not _equal(values[key], wanted)
    ]
    for key, accepted in keys.fixed.items():
        if not any(_equal(values[key], value) for value in accepted):
            problems.append(f"{key} is {_shown(values[key])}, expected {accepted[0]!r}")
    return problems


def _rope_problems(found: Mapping[str, Any], rope_base: float) -> list[str]:
    """Clauses about rotary embeddings, in the spellings of all releases.

    transformers 5 takes `rope_scaling` before `rope_parameters`, and `rope_theta` out of the one it
    took, then from the top level; earlier releases know only `rope_scaling` and the top level.
    """
    problems: list[str] = []
    bases = {"rope_theta": found["rope_theta"]} if "rope_theta" in found else {}
    for key in ROPE_KEYS[1:]:
        rope = found.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            problems.append(f"{key} is {_shown(rope)}, expected an object")
            continue
        kinds = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
        others = [
            name
            for name, value in rope.items()
            if name not in ("rope_type", "type", "rope_theta", "partial_rotary_factor")
            and value is not None
        ]
        if any(kind != "default" for kind in kinds):
            problems.append(
                f"{key} asks for rotary scaling {_shown(kinds[0] if len(kinds) == 1 else kinds)}, "
                "which is not supported (where the weights were trained without it, as those of "
                "models that add it for longer texts only, take it out of the file)"
            )
        elif any(isinstance(rope[name], dict) for name in others):
            problems.append(f"{key} differs by type of layer, which is not supported")
        elif others:
            problems.append(
                f"{key} has {', '.join(map(_shown, others))}, which plain rotary embeddings do not "
                "have: not supported"
            )
        if not _equal(rope.get("partial_rotary_factor") or 1.0, 1.0):
            problems.append(
                f"{key}.partial_rotary_factor is {_shown(rope['partial_rotary_factor'])}, "
                "expected 1.0"
            )
        if "rope_theta" in rope:
            bases[f"{key}.rope_theta"] = rope["rope_theta"]
    if problems:
        return problems
    if len({repr(base) for base in map(_as_float, bases.values())}) > 1:
        stated = " and ".join(f"{key} {_shown(base)}" for key, base in bases.items())
        return [f"has two bases of rotary embeddings, {stated}: keep the right one"]
    base = _rope(found)["rope_theta"]
    if _equal(base, rope_base):
        return []
    if base in bases.values():
        where = ""
    elif bases:
        where = " (transformers' default, since it reads rope_scaling and not rope_parameters)"
    else:
        where = " (transformers' default)"
    return [f"rope_theta is {_shown(base)}{where}, expected {rope_base!r}"]


def _is_full_attention(layer_types: Any, num_layers: int) -> bool:
    """Whether `layer_types` says so of every layer (`attention` is an older name of it)."""
    if layer_types is None:
        return True
    kinds = ("full_attention", "attention")
    return (
        isinstance(layer_types, list)
        and len(layer_types) == num_layers
        and all(kind in kinds for kind in layer_types)
    )


def _rope(found: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers takes for the rotary embeddings, the base always among it."""
    read = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if not isinstance(read, dict):
        read = {"rope_type": read}
    others = {key: value for key, value in read.items() if value not in (None, "default")}
    if "rope_theta" in read or "rope_theta" in found:
        base = read.get("rope_theta", found.get("rope_theta"))
    else:
        base = _class_defaults("Qwen2ForCausalLM")["rope_parameters"]["rope_theta"]
    return {**others, "rope_theta": base}


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _equal(found: Any, wanted: Any) -> bool:
    """Equal, and not as `1` equals `true`."""
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted


def _shown(value: Any) -> str:
    """A value of the file, on one line and not long."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
