"""Blocks of patches as one token with the channels of all of them."""

from __future__ import annotations

from torch import Tensor


def pixel_shuffle(patches_npc: Tensor, factor: int = 2) -> Tensor:
    """Merge each block of factor x factor patches into one token (InternVL's version "v2").

    Tokens run row by row, and so do the patches of a block in a token's channels: of 2 x 2 the
    upper-left, upper-right, lower-left and lower-right patch. [n, p, c] -> [n, p / f^2, f^2 c].
    """
    num_tiles, num_patches, channels = patches_npc.shape
    side = round(num_patches**0.5)
    assert side * side == num_patches and side % factor == 0, (
        f"{num_patches} patches are no square of blocks of {factor} x {factor}"
    )
    blocks = patches_npc.reshape(
        num_tiles, side // factor, factor, side // factor, factor, channels
    )
    return blocks.transpose(2, 3).reshape(num_tiles, num_patches // factor**2, factor**2 * channels)
