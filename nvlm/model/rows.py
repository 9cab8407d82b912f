"""The decoder's row of a micro-batch and, with cross-attention, the row beside it.

Both are embedded as one, and travel as one from pipeline stage to pipeline stage: first the
decoder's row, then what is beside it. So the projector stays on the first stage, where its gradient
is whole, and stages exchange one tensor, whose shape is known before the schedule. Where layers
of cross-attention read several levels in turn (EVLM, arXiv 2407.14177), the row beside is there
once for each level, one after another, and all of them travel.

Shape suffixes: t tokens of the decoder's row, k tokens beside it, l levels, n tiles, q tokens of a
tile, h language hidden size, x channels of all levels' embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from nvlm.batch import Beside, Gated, MicroBatch
from nvlm.model.splice import splice_levels
from nvlm.sizes.visual import Grid

# The decoder's row [t, 1, h], and the row beside it [k, 1, h], of levels in turn [l * k, 1, h];
# None where there is none.
Rows = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class PromptImages:
    """Of a question that is to be answered."""

    # [image tokens] int64, in the decoder's row; with fewer than the tiles have tokens there, those
    # are merged (`nvlm.model.connectors.merging`).
    positions: Tensor
    tiles: Tensor  # [n, 3, image_size, image_size] uint8, at least one
    beside: Beside | None = None
    gated: Gated | None = None
    grids: tuple[Grid, ...] = ()  # of its images, with `model.deepstack: tiles`


def num_beside(beside: Beside | None) -> int:
    """Tokens beside the decoder's row."""
    return 0 if beside is None else beside.tokens.shape[1]


def with_rows_alike(
    micro_batches: Sequence[MicroBatch], multiple: int, all_alike: bool
) -> list[MicroBatch]:
    """The micro-batches of a step with rows beside as the schedule needs them.

    What is added is seen by nobody.

    Args:
        multiple: what divides the length of each: sequence parallelism splits it.
        all_alike: as long as the step's longest, since pipeline stages exchange one shape.
    """
    lengths = [num_beside(one.beside) for one in micro_batches]
    if all_alike:
        lengths = [max(lengths)] * len(lengths)
    return [
        _padded(one, -(-length // multiple) * multiple)
        for one, length in zip(micro_batches, lengths, strict=True)
    ]


def _padded(micro_batch: MicroBatch, length: int) -> MicroBatch:
    beside = micro_batch.beside
    if beside is None or beside.tokens.shape[1] == length:
        return micro_batch
    tokens = functional.pad(beside.tokens, (0, length - beside.tokens.shape[1]))
    return replace(micro_batch, beside=replace(beside, tokens=tokens))


def all_tokens(tokens_1t: Tensor, beside: Beside | None) -> Tensor:
    """[1, t + k]"""
    return tokens_1t if beside is None else torch.cat([tokens_1t, beside.tokens], dim=1)


def visual_tokens(
    positions: Tensor, beside: Beside | None, num_tokens: int, visual_nqh: Tensor
) -> tuple[Tensor, Tensor]:
    """The places of image embeddings among `all_tokens`, and the tiles in the order of the places.

    Nothing is asked of the device: what is in the decoder's row is what is left over.

    Args:
        positions: those in the decoder's row, of `num_tokens`.
    """
    if beside is None or not len(beside.tiles):
        return positions, visual_nqh
    places = beside.image_positions + num_tokens
    if len(beside.tiles) == len(visual_nqh):
        return places, visual_nqh
    is_beside = torch.zeros(len(visual_nqh), dtype=torch.int8, device=beside.tiles.device)
    order = is_beside.index_fill(0, beside.tiles, 1).argsort(stable=True)
    return torch.cat([positions, places]), visual_nqh.index_select(0, order)


def split_rows(rows: Tensor, num_tokens: int) -> Rows:
    """The decoder's row, of so many tokens, and what is beside it; None where that is nothing."""
    if len(rows) == num_tokens:
        return rows, None
    return rows[:num_tokens], rows[num_tokens:]


def with_levels(
    embeddings: Tensor, beside: Beside | None, num_tokens: int, visual_nqx: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder's row [t, 1, h], and the row beside it once for each level [k, l, h].

    Args:
        embeddings: [t + k, 1, h], of `all_tokens`.
        visual_nqx: of all tiles, which all stand beside; the last level's first.
    """
    assert beside is not None
    last, *others = visual_nqx.split(embeddings.shape[-1], dim=-1)
    row, row_beside = embeddings[:num_tokens], embeddings[num_tokens:]
    return row, splice_levels(row_beside, beside.image_positions, [*others, last])


def one_after_another(levels_klh: Tensor) -> Tensor:
    """[l * k, 1, h], which `CrossAttention` takes apart."""
    return levels_klh.transpose(0, 1).reshape(-1, 1, levels_klh.shape[-1])


def sights_of(beside: Beside | None, comes_by_all: bool = False) -> Tensor | None:
    """[stretches, 4] int64, in host memory: `attention_mask` of `CrossAttention`.

    Args:
        comes_by_all: gradients are reduced during the passes, and so each has to come by every
            parameter; else None, where nobody sees anything, leaves the layers out.
    """
    if beside is None or not (beside.sights or comes_by_all):
        return None
    return torch.tensor(beside.sights, dtype=torch.int64).view(-1, 4)
