"""Micro-batches whose images have thumbnails in the row and tiles to add to them (DeepStack)."""

from __future__ import annotations

from itertools import pairwise

import torch

from nvlm.batch import IGNORED_LABEL, MicroBatch, check_micro_batch
from nvlm.config import RunConfig
from nvlm.sizes.visual import Grid, VisualLayout

# Of a document: the number of tokens of a text, or an image as (columns, rows) of its tiles.
Piece = int | Grid


def batch(config: RunConfig, seed: int, documents: list[list[Piece]]) -> MicroBatch:
    """Random tokens and pixels in packed documents of these pieces."""
    visual, generator = VisualLayout.from_config(config), torch.Generator().manual_seed(seed)
    is_image: list[bool] = []
    grids: list[Grid] = []
    starts = [0]
    for pieces in documents:
        for piece in pieces:
            is_image += [False] * piece if isinstance(piece, int) else [True] * 16
            grids += [] if isinstance(piece, int) else [piece]
        starts.append(len(is_image))
    lengths = [end - start for start, end in pairwise(starts)]
    shape, vocabulary = (1, len(is_image)), config.model.language.vocab_size
    labels = torch.randint(0, vocabulary, shape, generator=generator)
    image_mask = torch.tensor(is_image)[None]
    labels[image_mask] = IGNORED_LABEL
    size = (sum(map(visual.num_tiles, grids)), 3, visual.image_size, visual.image_size)
    micro_batch = MicroBatch(
        tokens=torch.randint(0, vocabulary, shape, generator=generator),
        labels=labels,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        image_mask=image_mask,
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        tiles=torch.randint(0, 256, size, generator=generator, dtype=torch.uint8),
        grids=tuple(grids),
    )
    check_micro_batch(micro_batch, visual)
    return micro_batch


def with_images(config: RunConfig) -> list[MicroBatch]:
    """The first and third have images, of two tiles and of one; two data ranks as elsewhere."""
    return [
        batch(config, 1, [[4, (2, 1), 7, (1, 2), 9], [28]]),
        batch(config, 2, [[30], [50]]),
        batch(config, 3, [[2, (1, 1), 20], [9, (1, 2), 17]]),
        batch(config, 4, [[80]]),
    ]
