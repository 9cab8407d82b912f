"""Decoder layers behind which something is added to image tokens.

DeepStack (arXiv 2406.04334), in two forms. Qwen3-VL's has features of encoder layers, in their
order, each through a connector of its own. The paper's own has tokens of a higher resolution: the
sequence has the thumbnail; of the tokens of r x c tiles, laid out as the image, every r-th row and
every c-th column are as many as the thumbnail's, each a part of what that token shows.

What is added comes with the hidden states as Megatron-core's `context` does, of which a layer
without cross-attention makes no use: so a layer that is recomputed has it as an input, and
gradients reach the connectors.

Shape suffixes: t tokens, k layers with something to add, n tiles, m images, q tokens of a tile, a
square of g x g, h language hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn import functional

from nvlm.config.schema import ModelConfig
from nvlm.model.splice import splice, splice_levels
from nvlm.sizes.visual import Grid


class DeepStackLayer(TransformerLayer):
    """`context` is what `added_rows` or `stacked_rows` makes, or None where nothing is added."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output: Any = super().forward(*arguments, **named)
        hidden_t1h, added_tkh = output
        index = self.layer_number - 1
        if added_tkh is not None and index < added_tkh.shape[1]:
            hidden_t1h = hidden_t1h + added_tkh[:, index : index + 1]
        return hidden_t1h, added_tkh


def with_deepstack(
    layers: Sequence[ModuleSpec], first: int, model: ModelConfig
) -> list[ModuleSpec]:
    """The layers, the first of which has the number `first`, with an addition behind them: those of
    the decoder's first for which there is one, or may be."""
    if model.deepstack == "none":
        return [*layers]
    num_layers = model.language.num_layers if model.stacks_tiles else model.num_connectors - 1
    return [
        replace(layer, module=DeepStackLayer) if number < num_layers else layer
        for number, layer in enumerate(layers, start=first)
    ]


def added_rows(embeddings_t1h: Tensor, positions: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """[t, k, h]: at image tokens what is added behind each of the first k layers, else zeros.

    Args:
        positions: those of image tokens, as `splice` takes them.
        levels: [n, q, h] of each of k layers.
    """
    zeros = torch.zeros_like(embeddings_t1h, requires_grad=False)
    return splice_levels(zeros, positions, levels)


def thumbnails_and_stacks(
    visual_nqh: Tensor, grids: Sequence[Grid]
) -> tuple[Tensor, Tensor | None]:
    """The tiles that stand in the sequence [m, q, h], and what is added to each of their tokens
    [m * q, k, h]; None where every image is one tile.

    Args:
        visual_nqh: of all images' tiles, row by row, the thumbnail last; tokens of a tile stand row
            by row too.
        grids: (columns, rows) of each image's tiles.
    """
    sizes = [columns * rows + (columns * rows > 1) for columns, rows in grids]
    images = visual_nqh.split(sizes)
    thumbnails = torch.stack([tiles[-1] for tiles in images])
    depth = max(sizes) - 1
    if not depth:
        return thumbnails, None
    stacks = [_stacks(tiles[:-1], grid, depth) for tiles, grid in zip(images, grids, strict=True)]
    return thumbnails, torch.cat(stacks)


def _stacks(tiles_nqh: Tensor, grid: Grid, depth: int) -> Tensor:
    """[q, k, h] of one image; zeros behind the last that it has.

    Stack a * columns + b has for the thumbnail's token in row i and column j the one in row
    i * rows + a and column j * columns + b of all tiles laid out.
    """
    columns, rows = grid
    num_tokens, width = tiles_nqh.shape[1:]
    side = isqrt(num_tokens)
    if not len(tiles_nqh):
        return tiles_nqh.new_zeros(num_tokens, depth, width)
    whole = tiles_nqh.reshape(rows, columns, side, side, width).transpose(1, 2)
    dealt = whole.reshape(side, rows, side, columns, width).permute(0, 2, 1, 3, 4)
    stacks_qkh = dealt.reshape(num_tokens, rows * columns, width)
    return functional.pad(stacks_qkh, (0, 0, 0, depth - rows * columns))


def stacked_rows(
    embeddings_t1h: Tensor, positions: Tensor, stacks_xkh: Tensor | None
) -> Tensor | None:
    """[t, k, h]: `stacks_xkh` at image tokens, else zeros.

    Args:
        positions: those of image tokens, as `splice` takes them; x of them.
    """
    if stacks_xkh is None:
        return None
    num_tokens, _, width = embeddings_t1h.shape
    zeros = embeddings_t1h.new_zeros(num_tokens, stacks_xkh.shape[1], width)
    return zeros.index_copy(0, positions, stacks_xkh.to(zeros.dtype))


def with_additions(
    embeddings_t1h: Tensor, positions: Tensor, visual_nqx: Tensor, grids: Sequence[Grid]
) -> tuple[Tensor, Tensor | None]:
    """The row with its image tokens, and what layers add to them.

    Args:
        positions: those of image tokens, as `splice` takes them.
        visual_nqx: of tiles; of levels with the channels of all, the last's first.
        grids: of images whose tiles are stacked; of levels there are none.
    """
    if grids:
        visual_mqh, stacks = thumbnails_and_stacks(visual_nqx, grids)
        row = splice(embeddings_t1h, positions, visual_mqh)
        return row, stacked_rows(embeddings_t1h, positions, stacks)
    visual_nqh, *levels = visual_nqx.split(embeddings_t1h.shape[-1], dim=-1)
    added = added_rows(embeddings_t1h, positions, levels)
    return splice(embeddings_t1h, positions, visual_nqh), added
