"""Image embeddings in the place of their placeholders.

Shape suffixes: t tokens, n tiles, q tokens of a tile, h language hidden size.
"""

from __future__ import annotations

from torch import Tensor


def splice(embeddings_t1h: Tensor, image_mask_1t: Tensor, visual_nqh: Tensor) -> Tensor:
    """`embeddings_t1h` with the marked positions overwritten by `visual_nqh`, in order."""
    visual = visual_nqh.reshape(-1, visual_nqh.shape[-1]).to(embeddings_t1h.dtype)
    assert int(image_mask_1t.sum()) == visual.shape[0], "placeholders and image tokens differ"
    return embeddings_t1h.masked_scatter(image_mask_1t.transpose(0, 1).unsqueeze(-1), visual)
