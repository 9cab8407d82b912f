"""What a decoder's layers keep of a question that is being answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nvlm.model.parts.cache import LayerShape, beside_key
from nvlm.model.parts.cross_attention import CrossAttention


def layer_shapes(layers: Iterable[Any], dtype: torch.dtype) -> list[LayerShape]:
    """Of Megatron-core's `TransformerLayer`s, those with cross-attention twice."""
    shapes = []
    for layer in layers:
        of_self, across = layer.self_attention, layer.cross_attention
        head_dim = of_self.hidden_size_per_attention_head
        num_groups = of_self.num_query_groups_per_partition
        shapes.append(LayerShape(layer.layer_number, num_groups, head_dim, dtype))
        if isinstance(across, CrossAttention):
            key = beside_key(layer.layer_number)
            shapes.append(LayerShape(key, across.num_groups, head_dim, dtype))
    return shapes
