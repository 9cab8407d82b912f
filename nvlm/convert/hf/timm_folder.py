"""Folders as timm puts them into the Hugging Face hub, and what of one does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nvlm.config.encoders.timm import TimmConfig
from nvlm.config.encoders.timm_models import timm_model
from nvlm.config.schema import ModelConfig
from nvlm.convert.hf.comparison import shown
from nvlm.convert.hf.folder import CONFIG_FILE, HfFolder
from nvlm.convert.rules import Rule, expected_tensors
from nvlm.convert.tables.timm import (
    POSITIONS,
    is_another_grid,
    timm_rules,
    with_interpolated_positions,
)
from nvlm.errors import ConvertError

# What timm's models have behind the features that are taken.
_UNUSED = re.compile(r"(norm|fc_norm|attn_pool|head)\..*")


def is_timm_folder(found: Mapping[str, Any]) -> bool:
    return isinstance(found.get("architecture"), str) and "architectures" not in found


def check_timm(folder: HfFolder, vision: TimmConfig, option: str) -> None:
    """Raise `ConvertError` unless `folder` is the model that `vision` names."""
    file = folder.path / CONFIG_FILE
    if not is_timm_folder(folder.config):
        raise ConvertError(
            f"{file}: has no `architecture`, as folders of timm's models have; {option} needs "
            f"{vision.name}, because model.vision.kind is timm"
        )
    if problems := list(_problems(folder.config, vision)):
        raise ConvertError(f"{file}: does not fit model.vision: {'; '.join(problems)}")


def _problems(found: Mapping[str, Any], vision: TimmConfig):
    name = vision.name.partition(".")[0]
    if found["architecture"] != name and not _is_quickgelu_of(name, found):
        yield f"architecture is {shown(found['architecture'])}, and model.vision.name {vision.name}"
        return
    arguments = found.get("model_args") or {}
    if others := {key: value for key, value in arguments.items() if key != "img_size"}:
        yield f"model_args {shown(others)} make another model of it than its name says"
    weights = found.get("pretrained_cfg") or {}
    tag = weights.get("tag")
    for key, wanted in zip(("mean", "std"), vision.pixel_statistics, strict=True):
        if key in weights and list(weights[key]) != list(wanted):
            hint = f"; model.vision.name={name}.{tag} has them" if isinstance(tag, str) else ""
            yield f"{key} is {shown(weights[key])}, and that of {vision.name} {list(wanted)}{hint}"


def _is_quickgelu_of(name: str, found: Mapping[str, Any]) -> bool:
    """Whether `name` is how timm calls the folder's model with the activation that these weights
    were trained with: the hub has them under the name without it alone."""
    tag = (found.get("pretrained_cfg") or {}).get("tag")
    is_plain = found["architecture"] == name.replace("_clip_quickgelu_", "_clip_")
    return bool(tag) and is_plain and timm_model(f"{name}.{tag}") is not None


def timm_folder_rules(folder: HfFolder, model: ModelConfig, part: str = "") -> list[Rule]:
    """The rules that read `folder`, learned positions interpolated where its grid is another.

    `part`: of several encoders which one, as `model.vision.parts` has it; so below.
    """
    rules, found = timm_rules(model, part=part), _other_positions(folder, model, part)
    vision = model.vision.parts[part]
    assert isinstance(vision, TimmConfig)
    if found is None:
        return rules
    return with_interpolated_positions(rules, found, vision.num_prefix_positions)


def check_timm_tensors(
    folder: HfFolder, model: ModelConfig, rules: list[Rule], part: str = ""
) -> None:
    """Raise `ConvertError` unless the folder has what `rules` read; what is behind the features
    may be there too."""
    vision = model.vision.parts[part]
    assert isinstance(vision, TimmConfig)
    built = range(vision.num_computed_layers)
    behind = {f"blocks.{n}" for n in range(vision.num_layers) if n not in built}
    unused = {
        name
        for name in folder.names()
        if _UNUSED.fullmatch(name) or ".".join(name.split(".")[:2]) in behind
    }
    folder.check_tensors(expected_tensors(rules), unused)


def interpolation_note(folder: HfFolder, model: ModelConfig, part: str = "") -> str | None:
    """What to know where learned positions were interpolated."""
    found = _other_positions(folder, model, part)
    if found is None:
        return None
    vision = model.vision.parts[part]
    assert isinstance(vision, TimmConfig)
    sides = [
        round((number - vision.num_prefix_positions) ** 0.5)
        for number in (found[1], vision.num_prefix_positions + vision.num_patches)
    ]
    old, new = (f"{side} x {side}" for side in sides)
    key = f"model.vision.{part}.image_size" if part else "model.vision.image_size"
    return (
        f"{folder.path}: learned positions of {old} patches were interpolated to {new} "
        f"({key} {vision.image_size}), bicubic as timm does it"
    )


def _other_positions(folder: HfFolder, model: ModelConfig, part: str) -> tuple[int, ...] | None:
    vision = model.vision.parts[part]
    assert isinstance(vision, TimmConfig)
    if POSITIONS not in folder.names() or vision.model.positions == "none":
        return None
    found, num_prefix = folder.shape(POSITIONS), vision.num_prefix_positions
    ours = (1, num_prefix + vision.num_patches, vision.hidden_size)
    return found if is_another_grid(ours, found, num_prefix) else None
