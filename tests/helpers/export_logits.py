"""Logits and answers of a checkpoint, and of its export here and in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor

from helpers.export_runs import Exported
from nvlm.batch import MicroBatch

if TYPE_CHECKING:
    from nvlm.generate.engine import Engine

NUM_NEW_TOKENS = 6


class Logits(NamedTuple):
    """Each [1, t, vocabulary], of the same tokens and tiles: text around two of them."""

    checkpoint: Tensor
    read_back: Tensor  # the export in Megatron-core
    transformers: Tensor  # by the files in the export's folder alone
    # Token ids: of the checkpoint, of transformers.
    answers: list[list[int]]
    transformers_answers: list[list[int]]

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
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in _statistics(converted))
    pixels, answers = (tiles / 255 - mean) / deviation, []
    for folder in (converted.checkpoint, converted.export):
        engine = Engine(folder)
        engine.load()
        with torch.no_grad():
            found.append(engine.model(batch, return_logits=True))
        if folder == converted.checkpoint:
            answers = greedy_answers(engine, published, tokens, tiles, pixels)
        engine.close()
    with torch.no_grad():
        logits = published(pixel_values=pixels, input_ids=tokens).logits
    checkpoint, read_back = found
    return Logits(checkpoint, read_back, logits, *answers)


def greedy_answers(
    engine: Engine, published: Any, tokens: Tensor, tiles: Tensor, pixels: Tensor
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids that the engine says, and transformers, with the tiles and to text alone.

    Args:
        tokens: [1, t], with the placeholders of all tiles; they end in text.
        pixels: what `published` takes for the tiles.
    """
    text = tokens[:, -10:]
    prompts: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = [
        (tokens, tiles, {"pixel_values": pixels}),
        (text, tiles[:0], {}),
    ]
    ours = [
        engine.generate(prompt[0].tolist(), some, NUM_NEW_TOKENS, stop_ids=())
        for prompt, some, _ in prompts
    ]
    theirs = [
        published.generate(
            input_ids=prompt, max_new_tokens=NUM_NEW_TOKENS, eos_token_id=-1, **images
        )[0].tolist()
        for prompt, _, images in prompts
    ]
    # With shared embeddings a random model repeats what it has read.
    assert len({token for answer in ours for token in answer}) > 1, "answers that vary"
    return ours, theirs


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
