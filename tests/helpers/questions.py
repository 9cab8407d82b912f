"""Random questions for engines, and what a session answers to them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from nvlm.config import RunConfig
from nvlm.data.text.encode import EncodedPrompt
from nvlm.generate.request import Progress, Sampling


def random_prompts(config: RunConfig, image_id: int, count: int) -> list[EncodedPrompt]:
    """Of many lengths; with no tiles, one, or several, at several places."""
    generator = torch.Generator().manual_seed(1)
    vision = config.model.vision
    prompts = []
    for number in range(count):
        pieces, num_tiles = [], number % 4
        for _ in range(num_tiles):
            pieces += [_text(generator, 12), np.full(config.model.num_tokens_per_tile, image_id)]
        pieces.append(_text(generator, 90 if number % 5 else 300))
        tokens = np.concatenate(pieces).astype(np.int64)
        shape = (num_tiles, 3, vision.image_size, vision.image_size)
        tiles = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        prompts.append(EncodedPrompt(tokens, tokens == image_id, tiles.numpy()))
    return prompts


def _text(generator: torch.Generator, longest: int) -> np.ndarray:
    length = int(torch.randint(1, longest, (), generator=generator))
    # Plain text ids only: no placeholder among them.
    return torch.randint(0, 900, (length,), generator=generator).numpy()


def answer_all(session, questions: Mapping[str, tuple[EncodedPrompt, Sampling]]):
    """Every question's progress, put together."""
    for key, (prompt, sampling) in questions.items():
        session.add(key, prompt, sampling)
    parts: dict[str, list[Progress]] = {key: [] for key in questions}
    while session.num_open:
        for progress in session.step():
            parts[progress.key].append(progress)
    return {key: joined(progress) for key, progress in parts.items()}


def joined(parts: list[Progress]) -> Progress:
    assert all(part.finish_reason is None for part in parts[:-1])
    return Progress(
        parts[0].key,
        "".join(part.text for part in parts),
        tuple(token for part in parts for token in part.token_ids),
        parts[-1].finish_reason,
    )
