"""Which of a row's tokens are images' and which are text, for layers that treat them differently.

Shape suffix: t tokens of the row, n of them here (with sequence parallelism a part).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor


@dataclass(frozen=True)
class TokenKinds:
    """Of one row. Nothing of it is asked of the device."""

    is_visual: Tensor  # [t] bool
    order: Tensor  # [t] int64: text first, each in its order
    inverse: Tensor  # [t] int64
    num_visual: int

    @classmethod
    def of(cls, image_positions: Tensor, num_tokens: int) -> TokenKinds:
        device = image_positions.device
        is_visual = torch.zeros(num_tokens, dtype=torch.bool, device=device)
        is_visual = is_visual.index_fill(0, image_positions, True)
        order = is_visual.to(torch.int8).argsort(stable=True)
        numbers = torch.arange(num_tokens, device=device)
        inverse = torch.empty_like(order).scatter_(0, order, numbers)
        return cls(is_visual, order, inverse, len(image_positions))

    @property
    def visual_positions(self) -> Tensor:
        return self.order[len(self.order) - self.num_visual :]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows [t, ...] -> those of text, and those of images."""
        sizes = [len(self.order) - self.num_visual, self.num_visual]
        text, visual = rows.index_select(0, self.order).split(sizes)
        return text, visual

    def join(self, text: Tensor, visual: Tensor) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([text, visual]).index_select(0, self.inverse)


@dataclass
class CurrentKinds:
    """Those of the row that a layer has in hand; shared by the parts of a model's layers.

    `of_row` is None where all tokens are text: later tokens of questions.
    """

    tensor_group: dist.ProcessGroup
    of_row: TokenKinds | None = None

    def mask(self, rows: Tensor) -> Tensor | None:
        """[n, 1, ...] bool, as wide as rows [n, ...]: which of them are images'."""
        if self.of_row is None:
            return None
        mask = self.of_row.is_visual
        if len(rows) != len(mask):
            mask = mask.chunk(self.tensor_group.size())[self.tensor_group.rank()]
        return mask.view(-1, *[1] * (rows.dim() - 1))


class VisualLayer(TransformerLayer):
    """Megatron-core's, which tells its parts what the row's tokens are.

    They are told at each pass: a layer that is recomputed has had other rows since.
    """

    kinds: CurrentKinds

    def forward(
        self, *arguments: Any, packed_seq_params: Any = None, inference_context: Any = None, **named
    ) -> Any:
        source = inference_context if packed_seq_params is None else packed_seq_params
        self.kinds.of_row = getattr(source, "kinds", None)
        try:
            return super().forward(
                *arguments,
                packed_seq_params=packed_seq_params,
                inference_context=inference_context,
                **named,
            )
        finally:
            self.kinds.of_row = None
