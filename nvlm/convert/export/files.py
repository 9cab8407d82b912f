"""What an export holds beside its weights: settings, tokenizer, modelling files, model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import nvlm
from nvlm.config.schema import ModelConfig, RunConfig
from nvlm.convert.export.config import generation_config, model_config, preprocessor_config
from nvlm.convert.export.model_card import model_card
from nvlm.convert.export.tokenizer import save_tokenizer
from nvlm.convert.hf.folder import CONFIG_FILE
from nvlm.data.text.chat import ChatTokenizer
from nvlm.sizes.parameters import COMPONENTS, component_parameters

MODELING_FILES = (
    "chat.py",
    "chat_format.py",
    "configuration_intern_vit.py",
    "configuration_nvlm_d.py",
    "connector_mlp.py",
    "image_tiling.py",
    "modeling_intern_vit.py",
    "modeling_nvlm_d.py",
    "prompts.py",
)
_HERE = Path(__file__).parents[1] / "hf_files"
_MODULES = Path(nvlm.__file__).parent / "model"

# Of encoders in plain torch, in the place of InternViT's; and what files call these.
PLAIN_ENCODER_FILES = ("configuration_timm.py", "modeling_timm.py")
_OF_INTERNVIT = ("configuration_intern_vit.py", "modeling_intern_vit.py")
_IMPORT = "from .modeling_intern_vit import InternVisionModel\n"
_RENAMED_TIMM = {
    # transformers 4 brings along what the model's own file names.
    _IMPORT: f"from .encoder_timm import Encoder\n{_IMPORT}",
    "configuration_intern_vit": "configuration_timm",
    "modeling_intern_vit": "modeling_timm",
    "InternVisionConfig": "TimmVisionConfig",
    "InternVisionModel": "TimmVisionModel",
    "InternVisionEmbeddings": "PatchEmbedding",
    "InternVisionEncoderLayer": "Block",
    "NVLM-D: InternViT, a projector": "NVLM-D: a ViT, a projector",
}

# Of several encoders, beside those of each kind.
SIDE_BY_SIDE_FILES = ("configuration_side_by_side.py", "modeling_side_by_side.py")
_RENAMED_SIDE_BY_SIDE = {
    "configuration_intern_vit import InternVisionConfig": (
        "configuration_side_by_side import SideBySideVisionConfig"
    ),
    '"vision_config": InternVisionConfig': '"vision_config": SideBySideVisionConfig',
    "(vision_config, InternVisionConfig)": "(vision_config, SideBySideVisionConfig)",
    "= InternVisionConfig(": "= SideBySideVisionConfig(",
    _IMPORT: (
        "from .configuration_intern_vit import InternVisionConfig\n"
        "from .configuration_timm import TimmVisionConfig\n"
        "from .encoder_side_by_side import read_side_by_side\n"
        f"from .encoder_timm import Encoder\n{_IMPORT}"
        "from .modeling_side_by_side import SideBySideVisionModel\n"
        "from .modeling_timm import TimmVisionModel\n"
    ),
    "= InternVisionModel(": "= SideBySideVisionModel(",
    '"InternVisionEncoderLayer",': '"InternVisionEncoderLayer", "PatchEmbedding", "Block",',
    "NVLM-D: InternViT, a projector": "NVLM-D: encoders side by side, a projector",
}

_RENAMED = {"timm": _RENAMED_TIMM, "side_by_side": _RENAMED_SIDE_BY_SIDE}

# Of NVLM-X and NVLM-H, besides.
FUSED_MODELING_FILES = (
    "configuration_nvlm_x.py",
    "cross_attention.py",
    "modeling_nvlm_x.py",
    "prompts_beside.py",
)


def write_export_files(
    folder: Path,
    config: RunConfig,
    progress: dict | None,
    tokenizer: Any,
    chat: ChatTokenizer,
    dtype: torch.dtype,
) -> None:
    """Write all but the weights of an export into `folder`; `chat` was made of `tokenizer`."""
    dtype_name = str(dtype).removeprefix("torch.")
    begin = chat.control_ids.get(chat.format.begin)
    save_tokenizer(tokenizer, chat, config.stage, folder)
    files = {
        CONFIG_FILE: model_config(
            config, dtype_name, chat.image_id, chat.end_id, chat.pad_id, begin, chat.format
        ),
        "generation_config.json": generation_config(chat.stop_ids, chat.pad_id),
        "preprocessor_config.json": preprocessor_config(config.model.vision),
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    _write_modeling_files(folder, config.model)

    sizes = {
        name: sum(row.num_parameters for row in component_parameters(config.model, name))
        for name in COMPONENTS
    }
    (folder / "README.md").write_text(model_card(config, chat.format, progress, sizes, dtype_name))


def _encoder_files(kind: str, of_internvit: dict[str, Path]) -> dict[str, Path]:
    """Name in an export -> the file that is copied. Side by side may be both kinds."""
    if kind == "internvit":
        return of_internvit
    found = {name: _HERE / name for name in PLAIN_ENCODER_FILES}
    found["encoder_timm.py"] = _MODULES / "encoders" / "timm.py"
    if kind == "side_by_side":
        found |= {**of_internvit, **{name: _HERE / name for name in SIDE_BY_SIDE_FILES}}
        found["encoder_side_by_side.py"] = _MODULES / "encoders" / "side_by_side.py"
    return found


def _write_modeling_files(folder: Path, model: ModelConfig) -> None:
    """The MLP's module here is Megatron-core's; of other connectors the export has the very file,
    and so of encoders that are not InternViT.

    What names them differs with them: within a process, transformers takes two exports whose
    configuration files are equal for the same model.
    """
    connector, encoder = model.connector.kind, model.vision.kind
    fused = () if model.fusion == "decoder_only" else FUSED_MODELING_FILES
    sources = {name: _HERE / name for name in (*MODELING_FILES, *fused)}
    renamed = {"connector_mlp": f"connector_{connector}"}
    if connector != "mlp":
        sources["connector_mlp.py"] = _MODULES / "connectors" / f"{connector}.py"
    if encoder != "internvit":
        renamed |= _RENAMED[encoder]
    of_encoders = {name: sources.pop(name) for name in _OF_INTERNVIT}
    for name, source in _encoder_files(encoder, of_encoders).items():
        (folder / name).write_text(source.read_text())
    for name, source in sources.items():
        text = source.read_text()
        for old, new in renamed.items():
            text, name = text.replace(old, new), name.replace(old, new)
        (folder / name).write_text(text)
