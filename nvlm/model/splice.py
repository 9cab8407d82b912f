"""Image embeddings in the place of their placeholders.

Shape suffixes: t tokens, n tiles, q tokens of a tile, l levels, h language hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def splice(embeddings_t1h: Tensor, positions: Tensor, visual_nqh: Tensor) -> Tensor:
    """`embeddings_t1h` with the tokens at `positions` overwritten by `visual_nqh`, in order.

    Args:
        positions: [n * q] int64, increasing. Positions and not a mask: a device that has to find
            out how many there are makes the host wait, forward and backward.
    """
    visual_x1h = visual_nqh.reshape(-1, 1, visual_nqh.shape[-1]).to(embeddings_t1h.dtype)
    assert len(positions) == len(visual_x1h), "placeholders and image tokens differ"
    return embeddings_t1h.index_copy(0, positions, visual_x1h)


def splice_levels(
    embeddings_t1h: Tensor, positions: Tensor, levels_nqh: Sequence[Tensor]
) -> Tensor:
    """[t, l, h]: `embeddings_t1h` with each of l levels' image embeddings in their places."""
    return torch.cat([splice(embeddings_t1h, positions, level) for level in levels_nqh], dim=1)


def with_zero_gradient(embeddings: Tensor, visual: Tensor) -> Tensor:
    """`embeddings` unchanged; in the backward pass `visual` gets a gradient of zeros."""
    return _WithZeroGradient.apply(embeddings, visual)  # type: ignore[return-value]


class _WithZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, visual: Tensor) -> Tensor:
        ctx.shape = visual.shape
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, gradient.new_zeros(ctx.shape)
