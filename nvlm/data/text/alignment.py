"""What the gate of `stage.alignment` reads of a document: what stands before its first answer.

Images and text of later turns are left out, and so is every answer: a question's vector is the same
whether it is trained, with all turns behind it, or asked.

Shape suffixes: t tokens and n tiles of the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nvlm.data.text.pieces import Piece
from nvlm.errors import DataError
from nvlm.sizes.visual import Grid, VisualLayout


@dataclass(frozen=True)
class EncodedAlignment:
    """Of one document, before packing. Without a vector the gate reads nothing of it."""

    position: int | None  # of the vector's token; None: it has none
    text: NDArray[np.bool_]  # [t]; tokens that are no image's, nor the vector's
    tiles: NDArray[np.bool_]  # [n]; those that show a whole image

    def followed_by(self, num_tokens: int) -> EncodedAlignment:
        """The same where so many tokens of an answer follow."""
        return replace(self, text=np.concatenate([self.text, np.zeros(num_tokens, np.bool_)]))


def encode_alignment(
    visual: VisualLayout, grids: Sequence[Grid], pieces: Sequence[Piece], lengths: Sequence[int]
) -> EncodedAlignment | None:
    """None without a gate.

    Args:
        grids: of the document's images.
        lengths: tokens of each of the document's `pieces`.

    Raises:
        DataError: no tile shows all of an image that the gate reads.
    """
    if not visual.mixes_levels:
        return None
    ends = np.cumsum([visual.num_tiles(grid) for grid in grids], dtype=np.int64)
    tiles = np.zeros(ends[-1] if len(ends) else 0, np.bool_)
    own = next((n for n, piece in enumerate(pieces) if piece.is_alignment), None)
    if own is None:
        return EncodedAlignment(None, np.zeros(sum(lengths), np.bool_), tiles)
    first_said = next((n for n, piece in enumerate(pieces) if piece.is_said), len(pieces))
    is_read = [
        number < first_said and not (piece.is_image or piece.is_alignment)
        for number, piece in enumerate(pieces)
    ]
    num_images = sum(piece.ends_image for piece in pieces[:first_said])
    tiles[ends[:num_images] - 1] = True
    for grid in grids[:num_images]:
        if visual.num_tiles(grid) > 1 and not visual.has_thumbnail(grid):
            raise DataError(
                f"an image in {grid[0]} x {grid[1]} tiles without a thumbnail: the gate of "
                "stage.alignment reads a tile of the whole image; use stage.use_thumbnail true, or "
                "one tile for each image"
            )
    return EncodedAlignment(sum(lengths[:own]), np.repeat(is_read, lengths), tiles)
