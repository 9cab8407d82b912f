"""Decoder layers behind which features of encoder layers are added to image tokens.

DeepStack (arXiv 2406.04334), in the form that Qwen3-VL has of it: encoder layers in their order,
each through a connector of its own, behind the decoder's first layers. What is added comes with the
hidden states as Megatron-core's `context` does, of which a layer without cross-attention makes no
use: so a layer that is recomputed has it as an input, and gradients reach the connectors.

Shape suffixes: t tokens, k layers of the encoder, h language hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nvlm.model.splice import splice_levels


class DeepStackLayer(TransformerLayer):
    """`context` is what `added_rows` makes, or None where a micro-batch has no images."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output: Any = super().forward(*arguments, **named)
        hidden_t1h, added_tkh = output
        if added_tkh is not None:
            index = self.layer_number - 1
            hidden_t1h = hidden_t1h + added_tkh[:, index : index + 1]
        return hidden_t1h, added_tkh


def with_deepstack(layers: Sequence[ModuleSpec], first: int, num_layers: int) -> list[ModuleSpec]:
    """The layers, the first of which has the number `first`, the decoder's first `num_layers` with
    an addition behind them."""
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
