"""Micro-batches of the small NVLM-X and NVLM-H, laid out by hand as the data layer would."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from helpers import small_model
from nvlm.batch import IGNORED_LABEL, Beside, MicroBatch, Sight, check_micro_batch
from nvlm.config import RunConfig
from nvlm.sizes.visual import VisualLayout

FUSIONS = ["cross_attention", "hybrid"]
NUM_TAG_TOKENS = 2
# Cross-attention in layers 1 and 3 of four, each key/value head for two query heads as in the
# decoder's self-attention; NVLM-X's projector.
SMALL = {
    "cross_attention": [
        "model.language.num_layers=4",
        "model.fusion=cross_attention",
        "model.cross_attention.layer_interval=2",
        "model.connector={kind: linear}",
        "stage.max_tiles_per_sequence=24",
    ],
    "hybrid": [
        "model.language.num_layers=4",
        "model.fusion=hybrid",
        "model.cross_attention.layer_interval=2",
        "stage.max_tiles_per_sequence=24",
    ],
}


def config_of(fusion: str, *overrides: str) -> RunConfig:
    return small_model.small_config(*SMALL[fusion], *overrides)


@dataclass(frozen=True)
class Image:
    """Between texts; of several tiles the last is the thumbnail."""

    num_tiles: int


# Of a document: the number of tokens of a text, or an image.
Piece = int | Image


class _Rows:
    """The two rows of a micro-batch while they grow; every place knows what it is."""

    def __init__(self, config: RunConfig):
        self.fusion, self.size = config.model.fusion, config.model.num_tokens_per_tile
        self.is_visual: list[bool] = []
        self.is_visual_beside: list[bool] = []
        self.num_tiles = 0
        self.tiles_beside: list[int] = []
        self.sights: list[Sight] = []

    def add_document(self, pieces: list[Piece]) -> None:
        first = len(self.is_visual_beside)
        for piece in pieces:
            if isinstance(piece, Image):
                self._add_image(piece.num_tiles, first)
            else:
                self._add_text(piece, (first, len(self.is_visual_beside)))

    def _add_text(self, num_tokens: int, sees: tuple[int, int]) -> None:
        start = len(self.is_visual)
        self.is_visual += [False] * num_tokens
        if sees[0] == sees[1]:
            return
        if self.sights and self.sights[-1][1:] == (start, *sees):
            start = self.sights.pop()[0]
        self.sights.append((start, len(self.is_visual), *sees))

    def _add_image(self, num_tiles: int, first: int) -> None:
        before = (first, len(self.is_visual_beside))
        self._add_text(1, before)  # <Image>
        for tile in range(num_tiles):
            is_beside = self.fusion == "cross_attention" or tile < num_tiles - 1
            if is_beside and self.fusion == "hybrid":
                self.is_visual_beside += [False] * NUM_TAG_TOKENS
            if is_beside:
                start = len(self.is_visual_beside)
                self.is_visual_beside += [True] * self.size
                self.tiles_beside.append(self.num_tiles + tile)
                if self.fusion == "cross_attention":
                    self._add_text(NUM_TAG_TOKENS, (start, start + self.size))
            else:
                self._add_text(NUM_TAG_TOKENS, before)
                self._add_text(self.size, before)
                self.is_visual[-self.size :] = [True] * self.size
        self.num_tiles += num_tiles
        self._add_text(1, (first, len(self.is_visual_beside)))  # </Image>


def batch(
    config: RunConfig, seed: int, documents: list[list[Piece]], length: int | None = None
) -> MicroBatch:
    """Random tokens and pixels in documents of these pieces; `length`: of the row, with padding."""
    rows, starts = _Rows(config), [0]
    for pieces in documents:
        rows.add_document(pieces)
        starts.append(len(rows.is_visual))
    if length is not None and length > starts[-1]:
        rows.add_document([length - starts[-1]])
        starts.append(length)
    generator = torch.Generator().manual_seed(seed)
    vocabulary, size = config.model.language.vocab_size, config.model.vision.image_size
    num_tokens, num_beside = len(rows.is_visual), len(rows.is_visual_beside)
    tokens = torch.randint(0, vocabulary, (1, num_tokens), generator=generator)
    labels = torch.randint(0, vocabulary, (1, num_tokens), generator=generator)
    image_mask = torch.tensor(rows.is_visual)[None]
    labels[image_mask] = IGNORED_LABEL
    beside = Beside(
        tokens=torch.randint(0, vocabulary, (1, num_beside), generator=generator),
        image_positions=torch.tensor(rows.is_visual_beside, dtype=torch.bool).nonzero()[:, 0],
        tiles=torch.tensor(rows.tiles_beside, dtype=torch.int64),
        sights=tuple(rows.sights),
    )
    lengths = [end - start for start, end in pairwise(starts)]
    tiles = torch.randint(
        0, 256, (rows.num_tiles, 3, size, size), generator=generator, dtype=torch.uint8
    )
    micro_batch = MicroBatch(
        tokens=tokens,
        labels=labels,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        image_mask=image_mask,
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        tiles=tiles,
        beside=beside,
    )
    check_micro_batch(micro_batch, VisualLayout.from_config(config))
    return micro_batch
