"""Bytes that a decoder layer keeps more where image tokens see each other both ways.

Their attention is asked twice (`SdpaAttention`): of each image token one more result
[heads x d] and an fp32 per head, unless attention is recomputed.
"""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES

_FP32 = DTYPES["fp32"].num_bytes


def layer_bytes(config: RunConfig, num_tiles: int) -> int:
    """Of a micro-batch with `num_tiles` tiles, on one process."""
    model = config.model
    is_recomputed = config.train.recompute.language.granularity == "selective"
    if not model.sees_both_ways or is_recomputed:
        return 0
    if model.holds_thumbnails:  # at least as many as these
        num_tiles = -(-num_tiles // config.max_tiles_per_image)
    heads = model.language.num_attention_heads // config.parallel.tensor
    of_head = DTYPES[config.train.precision].num_bytes * model.language.head_dim + _FP32
    return num_tiles * model.num_tokens_per_tile * heads * of_head
