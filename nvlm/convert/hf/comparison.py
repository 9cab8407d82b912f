"""Values of a `config.json` compared with those that a configuration asks for, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from nvlm.config.rope_scaling import YarnScalingConfig
from nvlm.convert.hf.config_keys import ROPE_KEYS, Keys


def with_defaults(
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
    from transformers import (
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen2MoeConfig,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig

    classes = {
        "Qwen2ForCausalLM": Qwen2Config,
        "Qwen3ForCausalLM": Qwen3Config,
        "LlamaForCausalLM": LlamaConfig,
        "MistralForCausalLM": MistralConfig,
        "Qwen2MoeForCausalLM": Qwen2MoeConfig,
        "Qwen3MoeForCausalLM": Qwen3MoeConfig,
    }
    if architecture not in classes and architecture != "InternVisionModel":
        return {}
    return vars(classes.get(architecture, InternVisionConfig)())


def unknown_keys(found: Mapping[str, Any], keys: Keys) -> list[str]:
    """A clause about the keys that are in no table. Those set to null say nothing."""
    unknown = [
        f"{key if key.isprintable() else ascii(key)}: {shown(value)}"
        for key, value in found.items()
        if value is not None and not keys.is_known(key)
    ]
    if not unknown:
        return []
    return [
        f"has keys that are not known here and may change what the model computes: "
        f"{', '.join(unknown)} (where they do not, take them out of the file)"
    ]


def value_differences(
    values: Mapping[str, Any], settings: Mapping[str, Any], keys: Keys
) -> list[str]:
    """Clauses about the values that are not `settings`, nor one of the fixed ones."""
    problems = [
        f"{key} is {shown(values[key])}, expected {wanted!r}"
        for key, wanted in settings.items()
        if not equal(values[key], wanted)
    ]
    for key, accepted in keys.fixed.items():
        if not any(equal(values[key], value) for value in accepted):
            problems.append(f"{key} is {shown(values[key])}, expected {accepted[0]!r}")
    return problems


def rope_problems(
    found: Mapping[str, Any], rope_base: float, scaling: Mapping[str, Any]
) -> list[str]:
    """Clauses about rotary embeddings, in the spellings of all releases.

    transformers 5 takes `rope_scaling` before `rope_parameters`, and `rope_theta` out of the one it
    took, then from the top level; earlier releases know only `rope_scaling` and the top level.

    Args:
        scaling: what `rope_scaling` should say; empty where there should be none.
    """
    problems: list[str] = []
    bases = {"rope_theta": found["rope_theta"]} if "rope_theta" in found else {}
    if scaling and not found.get("rope_scaling") and not found.get("rope_parameters"):
        problems.append(f"has no rope_scaling, expected {shown(dict(scaling))}")
    for key in ROPE_KEYS[1:]:
        rope = found.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            problems.append(f"{key} is {shown(rope)}, expected an object")
            continue
        problems += _scaling_problems(key, rope, scaling)
        if not equal(rope.get("partial_rotary_factor") or 1.0, 1.0):
            problems.append(
                f"{key}.partial_rotary_factor is {shown(rope['partial_rotary_factor'])}, "
                "expected 1.0"
            )
        if "rope_theta" in rope:
            bases[f"{key}.rope_theta"] = rope["rope_theta"]
    return problems or _base_problems(found, bases, rope_base)


def _scaling_problems(key: str, rope: Mapping[str, Any], scaling: Mapping[str, Any]) -> list[str]:
    kinds = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    others = {
        name: value
        for name, value in rope.items()
        if name not in ("rope_type", "type", "rope_theta", "partial_rotary_factor")
        and value is not None
    }
    if scaling:
        wanted = {name: value for name, value in scaling.items() if name != "rope_type"}
        if kinds and all(kind == scaling["rope_type"] for kind in kinds):
            others, wanted = (_with_yarns_defaults(kinds[0], values) for values in (others, wanted))
            return [
                f"{key}.{name} is {shown(others.get(name))}, expected {shown(wanted.get(name))}"
                for name in {**wanted, **others}
                if not equal(others.get(name), wanted.get(name))
            ]
        return [f"{key} is {shown(rope)}, expected {shown(dict(scaling))}"]
    if any(kind != "default" for kind in kinds):
        return [
            f"{key} asks for rotary scaling {shown(kinds[0] if len(kinds) == 1 else kinds)}, which "
            "is not model.language.rope_scaling of this configuration (it knows llama3 and yarn; "
            "where the weights were trained without scaling, as those of models that add it for "
            "longer texts only, take it out of the file)"
        ]
    if any(isinstance(value, dict) for value in others.values()):
        return [f"{key} differs by type of layer, which is not supported"]
    if others:
        return [
            f"{key} has {', '.join(map(shown, others))}, which plain rotary embeddings do not have:"
            " not supported"
        ]
    return []


def _with_yarns_defaults(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers takes for what a file does not say; only of YaRN it takes anything."""
    if kind != "yarn":
        return dict(values)
    defaults: dict[str, Any] = {"beta_fast": 32.0, "beta_slow": 1.0}
    factor = values.get("factor")
    if isinstance(factor, int | float) and factor > 0:
        defaults["attention_factor"] = YarnScalingConfig(factor=factor).factor_on_heads
    return {**defaults, **values}


def _base_problems(
    found: Mapping[str, Any], bases: Mapping[str, Any], rope_base: float
) -> list[str]:
    if len({repr(base) for base in map(_as_float, bases.values())}) > 1:
        stated = " and ".join(f"{key} {shown(base)}" for key, base in bases.items())
        return [f"has two bases of rotary embeddings, {stated}: keep the right one"]
    base = read_rope(found)["rope_theta"]
    if equal(base, rope_base):
        return []
    if base in bases.values():
        where = ""
    elif bases:
        where = " (transformers' default, since it reads rope_scaling and not rope_parameters)"
    else:
        where = " (transformers' default)"
    return [f"rope_theta is {shown(base)}{where}, expected {rope_base!r}"]


def is_full_attention(layer_types: Any, num_layers: int) -> bool:
    """Whether `layer_types` says so of every layer (`attention` is an older name of it)."""
    if layer_types is None:
        return True
    kinds = ("full_attention", "attention")
    return (
        isinstance(layer_types, list)
        and len(layer_types) == num_layers
        and all(kind in kinds for kind in layer_types)
    )


def read_rope(found: Mapping[str, Any]) -> dict[str, Any]:
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


def equal(found: Any, wanted: Any) -> bool:
    """Equal, and not as `1` equals `true`."""
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted


def shown(value: Any) -> str:
    """A value of the file, on one line and not long."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
