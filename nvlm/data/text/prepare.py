"""A question as a model reads it: the tokens of its turns and the tiles of its images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nvlm.config import RunConfig
from nvlm.data.images.tiling import choose_grid, cut_tiles
from nvlm.data.samples.sample import Messages
from nvlm.data.text.encode import EncodedPrompt, SampleEncoder


def prepare_prompt(
    config: RunConfig,
    encoder: SampleEncoder,
    messages: Messages,
    images: Sequence[NDArray[np.uint8]],
    max_num_tiles: int | Sequence[int] | None = None,
) -> EncodedPrompt:
    """Tokens and tiles of a question, tiled as the run's training samples are.

    Images are resized exactly as Pillow does, and so as the exported model does.

    Args:
        images: each [height, width, 3] RGB.
        max_num_tiles: most tiles per image, or of each image. None: the stage's.

    Raises:
        DataError: the user turns have more or fewer `<image>` marks than there are images.
    """
    stage, image_size = config.stage, config.model.vision.image_size
    limits = max_num_tiles or stage.max_num_tiles
    limits = [limits] * len(images) if isinstance(limits, int) else limits
    pairs = list(zip(images, limits, strict=True))
    grids = [choose_grid(i.shape[1], i.shape[0], n, image_size, stage.tiling) for i, n in pairs]
    cut = [cut_tiles(i, n, stage.use_thumbnail, image_size, tiling=stage.tiling) for i, n in pairs]
    encoded = encoder.encode_question(messages, grids)
    none = np.zeros((0, 3, image_size, image_size), np.uint8)
    return EncodedPrompt(
        encoded.tokens,
        encoded.image_mask,
        np.concatenate([none, *cut]),
        encoded.beside,
        encoded.alignment,
        encoded.grids,
    )
