"""Logits of text around two tiles: a checkpoint's, those of its export here and in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from helpers.export_runs import Exported
from nvlm.batch import MicroBatch


class Logits(NamedTuple):
    """Each [1, t, vocabulary], of the same tokens and tiles."""

    checkpoint: Tensor
    read_back: Tensor  # the export in Megatron-core
    transformers: Tensor  # by the files in the export's folder alone

    @property
    def largest_difference(self) -> float:
        return float((self.transformers - self.checkpoint).abs().max())


def export_logits(converted: Exported, monkeypatch: pytest.MonkeyPatch, modules: Path) -> Logits:
    """`modules`: a folder for transformers' copies of exports' code, the same for all tests."""
    from transformers import AutoModel, dynamic_module_utils

    from nvlm.generate.engine import Engine

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    config, found = converted.config, []
    published = AutoModel.from_pretrained(converted.export, trust_remote_code=True).eval()
    assert type(published).__module__.startswith("transformers_modules.")
    tokens, tiles = _inputs(config, published.config.img_context_token_id)
    batch = MicroBatch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        position_ids=torch.arange(tokens.shape[1])[None],
        image_mask=tokens == published.config.img_context_token_id,
        cu_seqlens=torch.tensor([0, tokens.shape[1]], dtype=torch.int32),
        tiles=tiles,
    )
    for folder in (converted.checkpoint, converted.export):
        engine = Engine(folder)
        engine.load()
        with torch.no_grad():
            found.append(engine.model(batch, return_logits=True))
        engine.close()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in _statistics(converted))
    with torch.no_grad():
        pixels = (tiles / 255 - mean) / deviation
        logits = published(pixel_values=pixels, input_ids=tokens).logits
    checkpoint, read_back = found
    return Logits(checkpoint, read_back, logits)


def _inputs(config, image_id: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size, num_placeholders = config.model.vision.image_size, 2 * config.model.num_tokens_per_tile
    tiles = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    vocabulary = config.model.language.vocab_size
    tokens = torch.randint(0, vocabulary, (1, num_placeholders + 20), generator=generator)
    tokens[tokens == image_id] -= 1
    tokens[:, 4 : 4 + num_placeholders] = image_id
    return tokens, tiles


def _statistics(converted: Exported) -> tuple[list[float], list[float]]:

    values = json.loads((converted.export / "preprocessor_config.json").read_text())
    return values["image_mean"], values["image_std"]
