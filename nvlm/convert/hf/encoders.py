"""What of an encoder's `config.json` does not fit a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.settings import EncoderSettings
from nvlm.config.encoders.side_by_side import SideBySideConfig
from nvlm.convert.hf.comparison import shown, unknown_keys, value_differences, with_defaults
from nvlm.convert.hf.config_keys import INTERN_VIT, PLAIN_VISION, SIDE_BY_SIDE
from nvlm.convert.hf.values import (
    plain_vision_values,
    side_by_side_values,
    vision_architecture,
    vision_values,
)


def vision_problems(found: Mapping[str, Any], vision: EncoderSettings) -> list[str]:
    """What of an encoder's `config.json` does not fit `vision`, a clause each."""
    if isinstance(vision, SideBySideConfig):
        return _side_by_side_problems(found, vision)
    if not isinstance(vision, InternViTConfig):
        wanted = plain_vision_values(vision)
        keys = PLAIN_VISION
        values = {key: found.get(key) for key in wanted} | {
            key: found.get(key, accepted[0]) for key, accepted in keys.fixed.items()
        }
        return [*unknown_keys(found, keys), *value_differences(values, wanted, keys)]
    keys = INTERN_VIT
    values = with_defaults(found, [*keys.settings, *keys.fixed], "InternVisionModel")
    ours = vision_values(vision)
    wanted = {key: ours[key] for key in keys.settings}
    values["feature_layers"], wanted["feature_layers"] = (
        side.get("feature_layers") for side in (found, ours)
    )
    return [*unknown_keys(found, keys), *value_differences(values, wanted, keys)]


def _side_by_side_problems(found: Mapping[str, Any], vision: SideBySideConfig) -> list[str]:
    wanted, keys = side_by_side_values(vision), SIDE_BY_SIDE
    values = {key: found.get(key) for key in wanted} | {
        key: found.get(key, accepted[0]) for key, accepted in keys.fixed.items()
    }
    problems = [*unknown_keys(found, keys), *value_differences(values, wanted, keys)]
    encoders = found.get("encoders")
    if not isinstance(encoders, list) or len(encoders) != len(vision.encoders):
        return [
            *problems,
            f"encoders is {shown(encoders)}, expected {len(vision.encoders)} of them",
        ]
    for number, (one, ours) in enumerate(zip(encoders, vision.encoders, strict=True)):
        if not isinstance(one, dict) or architecture_of(one) != vision_architecture(ours):
            problems.append(f"encoders.{number} is no {vision_architecture(ours)}")
        else:
            problems += [f"encoders.{number}.{text}" for text in vision_problems(one, ours)]
    return problems


def architecture_of(found: Mapping[str, Any]) -> str | None:
    """The one architecture that a `config.json` names."""
    named = found.get("architectures")
    if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str):
        return named[0]
    return None
