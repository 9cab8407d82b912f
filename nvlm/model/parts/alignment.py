"""Vectors of how well image and text agree, and the gate that mixes them (AlignGPT, arXiv
2405.14129, sections 3.2 and 3.3).

A sample that brings its level has that level's vector at its beginning. Where a gate decides, the
row has the highest level's there, which the paper calls the global part, and the gate adds shares
of all others: of the products of each image token with the mean embedding of the text.

The vectors stand in rows of tokens as learned tile tags do, by numbers behind the vocabulary's.

Shape suffixes: g documents with such a vector, t tokens, n tiles, q tokens of a tile, h language
hidden size.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvlm.batch import Gated
from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.model.parts.soft_tags import SoftTags
from nvlm.model.parts.whole import whole
from nvlm.model.splice import with_zero_gradient
from nvlm.sizes.alignment import ALIGNMENT, GATE_SIZE, alignment_rows


class Alignment(nn.Module):
    """A vector for each level and, where samples do not bring theirs, the gate."""

    gate_in: nn.Linear | None
    gate_out: nn.Linear | None

    def __init__(self, num_levels: int, hidden_size: int, first_id: int, num_read: int | None):
        """
        Args:
            first_id: the number of the lowest level's token.
            num_read: image tokens of a tile, which the gate reads; None: there is no gate.
        """
        super().__init__()
        self.levels = SoftTags(num_levels, hidden_size, first_id)
        self.gate_in = self.gate_out = None
        if num_read is not None:
            self.gate_in = nn.Linear(num_read, GATE_SIZE)
            self.gate_out = nn.Linear(GATE_SIZE, num_levels - 1)

    def mixed(self, embedded_t1h: Tensor, visual_nqh: Tensor, gated: Gated) -> Tensor:
        """[g, h]: what is added to the vectors of the highest level that stand in the row."""
        text_gh = _means(gated.of_tokens, len(gated.positions), embedded_t1h[:, 0])
        # Of tiles that nobody reads any text: nothing comes of the product.
        text_nh = text_gh.index_select(0, gated.of_tiles.clamp(min=0))
        products_nq = torch.bmm(visual_nqh, text_nh.to(visual_nqh.dtype).unsqueeze(-1)).squeeze(-1)
        return self.added(_means(gated.of_tiles, len(gated.positions), products_nq))

    def added(self, products_gq: Tensor) -> Tensor:
        """[g, h]: shares of all levels but the highest, by a softmax in fp32."""
        assert self.gate_in is not None and self.gate_out is not None
        weight = self.levels.weight
        inner = functional.gelu(self.gate_in(products_gq.to(weight.dtype)))
        shares = self.gate_out(inner).float().softmax(-1)
        return shares.to(weight.dtype) @ weight[:-1]

    def nothing(self) -> Tensor:
        """[1, h]: of no document; for passes in which each parameter has to have a gradient."""
        assert self.gate_in is not None
        return self.added(self.levels.weight.new_zeros(1, self.gate_in.in_features))


def _means(owners_x: Tensor, num_owners: int, rows_xy: Tensor) -> Tensor:
    """[g, y]: the mean of the rows of each owner, -1 being nobody; zeros where there are none.

    By a product, whose order of sums is the same each time.
    """
    numbers = torch.arange(num_owners, device=owners_x.device)
    is_own_gx = owners_x == numbers.unsqueeze(1)
    counts = is_own_gx.sum(1, keepdim=True).clamp(min=1)
    return is_own_gx.to(rows_xy.dtype) @ rows_xy / counts


def add_alignment(projector: nn.Module, config: RunConfig) -> None:
    """Beside the connector, on every tensor-parallel rank, where `stage.alignment` is set."""
    if not (rows := alignment_rows(config)):
        return
    first_id, dtype = config.model.language.vocab_size, DTYPES[config.train.precision].torch
    num_read = config.model.num_tokens_per_tile if config.stage.mixes_levels else None
    make = partial(Alignment, *rows[0].shape, first_id=first_id, num_read=num_read)
    projector.add_module(ALIGNMENT, whole(make, dtype))


def levels_of(projector: nn.Module | None) -> SoftTags | None:
    """None where a part of the model has no projector, or that no such vectors."""
    alignment = _alignment_of(projector)
    return None if alignment is None else alignment.levels


def with_mixed_levels(
    projector: nn.Module | None,
    embedded_t1h: Tensor,
    visual_nqx: Tensor | None = None,
    gated: Gated | None = None,
    by_all: bool = False,
) -> Tensor:
    """The row's embeddings, with what the gate adds to those of `gated`; without a gate, as it is.

    Args:
        visual_nqx: with `model.deepstack` what is for later layers is behind the first h of x.
        by_all: gradients are reduced during the passes, and so each has to come by every parameter.
    """
    alignment = _alignment_of(projector)
    if alignment is None or alignment.gate_in is None:
        return embedded_t1h
    if visual_nqx is None or gated is None or not len(gated.positions):
        return with_zero_gradient(embedded_t1h, alignment.nothing()) if by_all else embedded_t1h
    added_gh = alignment.mixed(embedded_t1h, visual_nqx[..., : embedded_t1h.shape[-1]], gated)
    return embedded_t1h.index_add(0, gated.positions, added_gh.unsqueeze(1).to(embedded_t1h.dtype))


def _alignment_of(projector: nn.Module | None) -> Alignment | None:
    return getattr(projector, ALIGNMENT, None)
