"""The Hugging Face folders that a checkpoint is made of, checked, with the rules that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm.config.connectors.mlp import MLPConfig
from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.timm import TimmConfig
from nvlm.config.schema import ModelConfig
from nvlm.convert.export.config import RELEASED_PROJECTOR_EPSILON
from nvlm.convert.hf.architectures import (
    LANGUAGE_ARCHITECTURES,
    architecture_of,
    check_language,
    check_released,
    check_vision,
    part_of_folder,
)
from nvlm.convert.hf.config_keys import FUSIONS
from nvlm.convert.hf.folder import CONFIG_FILE, HfFolder
from nvlm.convert.hf.timm_folder import (
    check_timm_tensors,
    is_timm_folder,
    timm_folder_rules,
)
from nvlm.convert.rules import Rule, expected_tensors
from nvlm.convert.tables.internvit import vision_rules
from nvlm.convert.tables.nvlm_d import nvlm_d_rules, vision_prefix
from nvlm.convert.tables.qwen2 import language_rules
from nvlm.errors import ConvertError
from nvlm.hub import Folder, folder_of


@dataclass(frozen=True)
class Source:
    """A folder, the rules that read it, and where it came from."""

    folder: HfFolder
    rules: list[Rule]
    option: str  # what it was given as: `--vision`
    origin: Folder
    part: str = ""  # of several encoders the one that it is of (`model.vision.parts`)


def open_parts(
    vision: str | Path | Sequence[str | Path], language: str | Path, model: ModelConfig
) -> list[Source]:
    """Open a vision encoder and a language model. Reads names and shapes, no weights.

    Args:
        vision, language: folders, or ids of the hub; see `nvlm.hub`. Of encoders side by side one
            for each, in their order.

    Raises:
        ConvertError: a folder is missing, not whole, or of another architecture or size; tensors
            are missing, extra, or of another shape.
        DataError: it cannot be had from the hub.
    """
    parts = model.vision.parts
    given = [vision] if isinstance(vision, str | Path) else [*vision]
    if len(given) != len(parts):
        number = "1 encoder" if len(parts) == 1 else f"{len(parts)} encoders"
        raise ConvertError(
            f"--vision is given {len(given)} times, and model.vision of kind {model.vision.kind} "
            f"has {number}: give one folder for each, in their order"
        )
    several = len(parts) > 1
    options = {part: f"--vision {n}" if several else "--vision" for n, part in enumerate(parts)}
    names = {**dict(zip(options.values(), given, strict=True)), "--language": language}
    origins = {option: folder_of(name, option) for option, name in names.items()}
    folders = {option: HfFolder(origin.path) for option, origin in origins.items()}
    for part, option in options.items():
        check_vision(folders[option], parts[part], option)
    check_language(folders["--language"], model.language)
    place = {option: part for part, option in options.items()}
    return [
        _fitting(folders[option], model, option, origins[option], place.get(option, ""))
        for option in folders
    ]


def open_released(nvlm: str | Path, model: ModelConfig) -> list[Source]:
    """Open an NVLM-D, X or H in the released layout, the ViT's heads padded or not.

    Raises:
        ConvertError, DataError: as `open_parts`.
    """
    origin = folder_of(nvlm, "--nvlm")
    folder = HfFolder(origin.path)
    check_released(folder, model)
    return [_fitting(folder, model, "--nvlm", origin)]


def folder_rules(folder: HfFolder, model: ModelConfig, part: str | None = None) -> list[Rule]:
    """The rules that read `folder`, by the architecture that it says it has.

    `part`: of several encoders the one that it is of; None: the one that it fits.

    Raises:
        ConvertError: none of ours.
    """
    architecture = architecture_of(folder.config)
    part = part_of_folder(folder, model) if part is None else part
    encoder = model.vision.parts.get(part)
    if is_timm_folder(folder.config) and isinstance(encoder, TimmConfig):
        return timm_folder_rules(folder, model, part)
    if architecture == "InternVisionModel" and isinstance(encoder, InternViTConfig):
        return vision_rules(model, _num_heads(folder, "", encoder), part=part)
    if architecture in LANGUAGE_ARCHITECTURES:
        return language_rules(model, with_cross_attention=False)
    if architecture in FUSIONS:
        return nvlm_d_rules(
            model,
            {
                name: _num_heads(folder, vision_prefix(name), one)
                for name, one in model.vision.parts.items()
                if isinstance(one, InternViTConfig)
            },
        )
    raise ConvertError(
        f"{folder.path / CONFIG_FILE}: architecture {architecture!a} is none of InternVisionModel, "
        f"{', '.join([*LANGUAGE_ARCHITECTURES, *FUSIONS])}"
    )


def projector_epsilon_difference(folder: HfFolder, model: ModelConfig) -> str | None:
    """What to know where the projector of a released layout computes otherwise than `model`."""
    if not isinstance(model.connector, MLPConfig):
        return None
    ours = model.connector.norm_epsilon
    # A stated one is equal, or was refused.
    if folder.config.get("projector_layer_norm_eps") is not None:
        return None
    if ours == RELEASED_PROJECTOR_EPSILON:
        return None
    return (
        f"the modelling files of {folder.path} compute the projector's LayerNorm with epsilon "
        f"{RELEASED_PROJECTOR_EPSILON:g}, this configuration with {ours:g} "
        "(model.connector.norm_epsilon)"
    )


def _fitting(
    folder: HfFolder, model: ModelConfig, option: str, origin: Folder, part: str = ""
) -> Source:
    rules = folder_rules(folder, model, part)
    if is_timm_folder(folder.config):
        check_timm_tensors(folder, model, rules, part)
    else:
        folder.check_tensors(expected_tensors(rules))
    return Source(folder, rules, option, origin, part)


def _num_heads(folder: HfFolder, prefix: str, vision: InternViTConfig) -> int:
    """Heads in an InternViT's tensors: the real ones, or zero ones after them."""
    name = f"{prefix}encoder.layers.0.attn.qkv.weight"
    if name not in folder.names():
        return vision.num_attention_heads  # the missing tensor is reported with all others
    num_heads, rest = divmod(folder.shape(name)[0], 3 * vision.head_dim)
    if rest or num_heads < vision.num_attention_heads:
        return vision.num_attention_heads  # another shape, reported with all others
    if num_heads > vision.num_stored_attention_heads:
        raise ConvertError(
            f"{folder.path}: stores {num_heads} heads, more than "
            f"model.vision.num_stored_attention_heads {vision.num_stored_attention_heads}"
        )
    return num_heads
