"""A question made ready for the engine: its pictures decoded, with as many tiles as fit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.config import RunConfig
from nvlm.data.images.image import decode_image
from nvlm.data.images.tiling import choose_grid
from nvlm.data.samples.repairs import noting_repairs
from nvlm.data.samples.sample import SampleError
from nvlm.data.text.encode import EncodedPrompt, SampleEncoder
from nvlm.data.text.prepare import prepare_prompt
from nvlm.errors import DataError
from nvlm.evaluate.questions import TOO_LONG
from nvlm.evaluate.suite.conversation import Conversation
from nvlm.generate.greedy import check_positions


@dataclass(frozen=True)
class Ready:
    """What goes into a session, and what a row notes of it."""

    prompt: EncodedPrompt
    image_hashes: list[str]  # SHA-256 of the encoded images, in order
    max_num_tiles: list[int]  # of each image
    repairs: dict[str, int]


def make_ready(
    config: RunConfig,
    encoder: SampleEncoder,
    conversation: Conversation,
    max_new_tokens: int,
    max_num_tiles: int | None,
) -> Ready:
    """Decode and tile the pictures, and encode the turns.

    Args:
        config: of the checkpoint or the training that answers; at any layout.
        encoder: its.

    Raises:
        SampleError: a picture cannot be read or decoded, or prompt and answer do not fit the model.
    """
    files = []
    for read in conversation.images:
        try:
            files.append(read())
        except SampleError:
            raise
        except (OSError, DataError) as error:
            raise SampleError("image", str(error)) from None
    with noting_repairs() as repairs:
        pictures = [decode_image(data, config.data.max_image_megapixels) for data in files]
    limits = _limits(config, encoder, conversation, pictures, max_new_tokens, max_num_tiles)
    try:
        prompt = prepare_prompt(config, encoder, conversation.messages, pictures, limits)
        check_positions(config, len(prompt.tokens), max_new_tokens)
    except SampleError:
        raise
    except DataError as error:  # marks of images in a question's own text
        raise SampleError("prompt", str(error)) from None
    hashes = [hashlib.sha256(data).hexdigest() for data in files]
    return Ready(prompt, hashes, limits, dict(repairs))


def _limits(
    config: RunConfig,
    encoder: SampleEncoder,
    conversation: Conversation,
    pictures: Sequence[NDArray[np.uint8]],
    max_new_tokens: int,
    max_num_tiles: int | None,
) -> list[int]:
    """Most tiles of each picture, so that the prompt is no longer than training's sequences.

    The examples' pictures are given fewer tiles first, all alike, down to one (MM1 lowers the
    resolution of all but the last examples so: McKinzie et al. 2024), then the question's.

    Raises:
        SampleError: prompt and answer have more tokens than the model has positions, at one tile
            per picture.
    """
    most = max_num_tiles or config.stage.max_num_tiles
    num_shots, num_own = conversation.num_shot_images, len(pictures)
    num_own -= num_shots
    levels = [(shots, most) for shots in range(most, 0, -1)] if num_shots else [(1, most)]
    levels += [(1, own) for own in range(most - 1, 0, -1)]
    positions = config.model.language.max_position_embeddings
    num_tokens = 0
    for shots, own in levels:
        limits = [shots] * num_shots + [own] * num_own
        num_tokens, num_tiles = _measure(config, encoder, conversation, pictures, limits)
        budget = config.stage.max_tiles_per_sequence
        is_short = num_tokens <= config.stage.sequence_length or (
            not encoder.visual.tiles_take_room  # so that fewer would not make it shorter
        )
        if (
            is_short
            and num_tokens + max_new_tokens <= positions
            and (budget is None or num_tiles <= budget)
        ):
            return limits
    if num_tokens + max_new_tokens <= positions:
        return [1] * len(pictures)  # longer than in training, and still what the model can read
    raise SampleError(
        TOO_LONG,
        f"{num_tokens:,} tokens with one tile per picture, and {max_new_tokens:,} of the answer: "
        f"the model has {positions:,} positions (model.language.max_position_embeddings)",
    )


def _measure(
    config: RunConfig,
    encoder: SampleEncoder,
    conversation: Conversation,
    pictures: Sequence[NDArray[np.uint8]],
    limits: Sequence[int],
) -> tuple[int, int]:
    """Tokens and tiles of the prompt."""
    size = config.model.vision.image_size
    grids = [
        choose_grid(picture.shape[1], picture.shape[0], limit, size, config.stage.tiling)
        for picture, limit in zip(pictures, limits, strict=True)
    ]
    try:
        tokens, _ = encoder.encode_prompt(conversation.messages, grids)
    except DataError as error:
        raise SampleError("prompt", str(error)) from None
    return len(tokens), sum(encoder.visual.num_tiles(grid) for grid in grids)
