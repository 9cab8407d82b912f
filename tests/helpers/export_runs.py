"""What tests of exports share: making one, a client in a process of its own, Megatron's logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helpers import small_folders
from nvlm.batch import MicroBatch
from nvlm.checkpoint_io import read_sharded
from nvlm.config import RunConfig
from nvlm.data.text.encode import SampleEncoder
from nvlm.sizes.visual import Grid

MEGATRON = "Megatron-core, the checkpoint that was exported"
# What a model needs so that every program opens its export with no difference: tiles of 448 pixels
# and seven zero heads, the projector's epsilon that servers compute with.
SERVED = [
    "model.vision.image_size=448",
    "model.vision.num_stored_attention_heads=12",
    "model.connector.norm_epsilon=1e-5",
    "stage.sequence_length=4096",
]


@dataclass(frozen=True)
class Exported:
    config: RunConfig
    checkpoint: Path
    export: Path


def make_export(folder: Path, overrides: Sequence[str]) -> Exported:
    """Small random models in `folder`, through a checkpoint to an export."""
    from nvlm.convert import convert_from_hf, convert_to_hf

    config = small_folders.convert_config(*overrides)
    small_folders.make_vision_folder(folder / "vision", config)
    tied = config.model.language.share_embeddings_and_output_weights
    small_folders.make_language_folder(folder / "language", config, tie_word_embeddings=tied)
    checkpoint = convert_from_hf(
        folder / "vision", folder / "language", config, folder / "checkpoint"
    )
    return Exported(config, checkpoint, convert_to_hf(checkpoint, folder / "export"))


def run_client(script: str, export: Path, cases: dict, folder: Path) -> dict:
    """The results of `script`, beside this file, which runs with nothing of this repository."""
    cases_file, results_file = folder / "cases.pt", folder / "results.pt"
    torch.save(cases, cases_file)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, Path(__file__).with_name(script), export, cases_file, results_file],
        check=True,
        timeout=300,
        env=environment,
        cwd=folder,
    )
    return torch.load(results_file)


def normalize(tiles: np.ndarray) -> torch.Tensor:
    """[n, 3, image_size, image_size] uint8 -> pixel values."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (torch.from_numpy(tiles).float() / 255 - mean) / std


def megatron_logits(
    converted: Exported, input_ids: torch.Tensor, tiles: np.ndarray
) -> torch.Tensor:
    """Logits [1, t, v] of the checkpoint behind `converted.export`."""
    from nvlm.model.nvlm_d import build_model
    from nvlm.parallel.groups import initialize, shut_down

    config = converted.config
    parallel = initialize(config, world_size=1)
    model = build_model(config, parallel).eval()
    loaded = read_sharded(converted.checkpoint, {"model": model.sharded_state_dict()})
    model.load_state_dict(loaded["model"])
    length = input_ids.shape[1]
    image_id = json.loads((converted.export / "config.json").read_text())["img_context_token_id"]
    batch = MicroBatch(
        tokens=input_ids,
        labels=torch.full_like(input_ids, -100),
        position_ids=torch.arange(length)[None],
        image_mask=input_ids == image_id,
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        tiles=torch.from_numpy(tiles),
    )
    with torch.no_grad():
        logits = model(batch, return_logits=True)
    shut_down()
    return logits


def grids(encoder: SampleEncoder, num_tiles: list[int]) -> list[Grid]:
    """Grids of so many tiles: no tags that the export knows tell one grid from another."""
    has_thumbnail = encoder.visual.use_thumbnail
    return [(number - 1 if has_thumbnail and number > 1 else number, 1) for number in num_tiles]
