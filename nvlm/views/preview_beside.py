"""What NVLM-X and NVLM-H read beside the decoder's row, in words: which tiles, seen by whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvlm.data.text.beside import EncodedBeside
from nvlm.sizes.visual import VisualLayout


def describe_beside(visual: VisualLayout, beside: EncodedBeside | None) -> list[str]:
    """Lines about a document; none where tiles stand in the decoder's row alone (NVLM-D).

    Tiles are counted from 1 through all images of the document, thumbnails among them.
    """
    if beside is None or not beside.num_tiles:
        return []
    tiles = [int(tile) + 1 for tile in beside.tiles]
    lines = [
        f"beside the row, for cross-attention: {_named(tiles)} of {beside.num_tiles:,}, "
        f"{len(beside.tokens):,} tokens"
    ]
    # Where the tokens of each tile begin beside.
    starts = np.flatnonzero(beside.image_mask)[:: visual.num_tokens_per_tile]
    for start, end, first, last in beside.sights:
        seen = [tile for tile, place in zip(tiles, starts, strict=True) if first <= place < last]
        who = f"token {start}" if end == start + 1 else f"tokens {start} to {end - 1}"
        lines.append(f"{who} see{'s' if end == start + 1 else ''} {_named(seen)}")
    return lines


def _named(tiles: Sequence[int]) -> str:
    """Runs of numbers that follow each other, by their ends."""
    runs: list[list[int]] = []
    for tile in tiles:
        if runs and tile == runs[-1][-1] + 1:
            runs[-1].append(tile)
        else:
            runs.append([tile])
    if not runs:
        return "no tiles"
    words = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"{'tile' if len(tiles) == 1 else 'tiles'} {', '.join(words)}"
