"""Learned vectors in the place of the tokens of tile tags (Tag-LLM, arXiv 2402.05140, section 3.1).

In a row of tokens they have numbers behind the vocabulary's (`VisualLayout.soft_tags`), so that
packing, context parallelism and prompts carry them like any other token.

Shape suffixes: b rows, t tokens, h language hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.model.parts.whole import whole
from nvlm.sizes.tile_tags import TILE_TAGS, tile_tag_rows


class SoftTags(nn.Module):
    """Vectors of tags, those of one after those of another."""

    def __init__(self, num_vectors: int, hidden_size: int, first_id: int):
        """`first_id`: the number of the first vector's token."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_vectors, hidden_size))
        self._first_id = first_id

    def forward(self, tokens_bt: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """[t, b, h]: what `embed` makes of tokens of the vocabulary, and here these vectors.

        All vectors get a gradient in every pass, of zero where no tag of theirs stands; and nothing
        is asked of the device.
        """
        numbers_tb = tokens_bt.T - self._first_id
        is_tag_tb1 = (numbers_tb >= 0).unsqueeze(-1)
        text = embed(tokens_bt.clamp(max=self._first_id - 1))
        tags = functional.embedding(numbers_tb.clamp(min=0), self.weight)
        return torch.where(is_tag_tb1, tags.to(text.dtype), text)


def add_soft_tags(projector: nn.Module, config: RunConfig) -> None:
    """Beside the connector, on every tensor-parallel rank, where `stage.tile_tags` is `soft`."""
    first_id, dtype = config.model.language.vocab_size, DTYPES[config.train.precision].torch
    for row in tile_tag_rows(config):
        make = partial(SoftTags, *row.shape, first_id=first_id)
        projector.add_module(TILE_TAGS, whole(make, dtype))


def soft_tags_of(projector: nn.Module | None) -> SoftTags | None:
    """None where a part of the model has no projector, or that no such tags."""
    return getattr(projector, TILE_TAGS, None)
