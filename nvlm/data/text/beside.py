"""What a sample has beside the decoder's tokens, and which of these see which part of it.

The decoder of NVLM-X and NVLM-H reads tiles by cross-attention: see `nvlm.batch.Beside`, which
this is of one document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nvlm.batch import Sight
from nvlm.data.text.chat import ChatTokenizer
from nvlm.sizes.visual import Grid, VisualLayout


@dataclass(frozen=True)
class EncodedBeside:
    """Of one document, before packing; k tokens. Numbers count from the document's first."""

    tokens: NDArray[np.int64]  # [k]
    image_mask: NDArray[np.bool_]  # [k]
    tiles: NDArray[np.int64]  # [m] numbers of the document's tiles
    num_tiles: int  # that the document has, those in the decoder's sequence too
    sights: tuple[Sight, ...]

    def followed_by(self, num_tokens: int) -> EncodedBeside:
        """The same where so many tokens of text follow, which see all that the last one sees."""
        if not self.sights:
            return self
        *others, (start, end, first, last) = self.sights
        return replace(self, sights=(*others, (start, end + num_tokens, first, last)))


# Of tokens that are laid out as one text, beside how many there are: the tile of the image in hand
# that they are the tag of and see alone, else None; and whether that image's block ends with them.
Mark = tuple[int | None, bool]


def encode_beside(
    visual: VisualLayout,
    tokenizer: ChatTokenizer,
    grids: Sequence[Grid],
    lengths: Sequence[int],
    marks: Sequence[Mark],
) -> EncodedBeside | None:
    """The row beside a document and its sights; None where the fusion has no such row.

    Args:
        grids: of its images.
        lengths: of the texts that its tokens are laid out as, in order.
        marks: of these texts.
    """
    if visual.fusion == "decoder_only":
        return None
    ids: list[int] = []
    image_mask: list[bool] = []
    tiles: list[int] = []
    starts: list[list[int]] = []  # of each image: where its tiles begin beside, and where it ends
    num_tiles, size = 0, visual.num_tokens_per_tile
    for grid in grids:
        starts.append([])
        for tag in visual.tags_beside(grid):
            starts[-1].append(len(ids))
            tag_ids = tokenizer.encode(tag) if tag else []
            ids += [*tag_ids, *[tokenizer.image_id] * size]
            image_mask += [False] * len(tag_ids) + [True] * size
        starts[-1].append(len(ids))
        tiles += [num_tiles + tile for tile in visual.tiles_beside(grid)]
        num_tiles += visual.num_tiles(grid)
    return EncodedBeside(
        np.array(ids, np.int64),
        np.array(image_mask, np.bool_),
        np.array(tiles, np.int64),
        num_tiles,
        _sights(starts, lengths, marks),
    )


def _sights(
    starts: list[list[int]], lengths: Sequence[int], marks: Sequence[Mark]
) -> tuple[Sight, ...]:
    sights: list[Sight] = []
    image = seen = end = 0
    for length, (tile, ends_image) in zip(lengths, marks, strict=True):
        start, end = end, end + length
        first, last = (0, seen) if tile is None else starts[image][tile : tile + 2]
        if ends_image:
            seen = starts[image][-1]
            image += 1
        if start == end or first == last:
            continue
        if sights and sights[-1][1:] == (start, first, last):
            start = sights.pop()[0]
        sights.append((start, end, first, last))
    return tuple(sights)
