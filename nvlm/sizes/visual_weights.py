"""Bytes that a decoder layer keeps more where image tokens have weights of their own.

    norms     an fp32 per row, of both kinds' norms; which token is which
    matrices  that train keep the whole row as their input [t, h], also with sequence parallelism;
              with keys and values alone, those of images once more

What is multiplied is a copy of the row, text first, which is kept in the place of a norm's output.
"""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.sizes.adapters import frozen_patterns
from nvlm.sizes.parameters import LANGUAGE, is_frozen

_FP32 = DTYPES["fp32"].num_bytes


def layer_bytes(config: RunConfig, layer: int, num_tiles: int) -> int:
    """Of a micro-batch with `num_tiles` tiles, on one process."""
    language, parallel = config.model.language, config.parallel
    if language.visual_weights == "none":
        return 0
    tokens = config.train.micro_batch_size * config.stage.sequence_length
    local_tokens = tokens // parallel.tensor if parallel.sequence else tokens
    of_row = language.hidden_size * DTYPES[config.train.precision].num_bytes
    total = 2 * _FP32 * local_tokens
    for name in ("self_attention.linear_qkv", "mlp.linear_fc1"):
        if visual_trains(config, layer, name):
            if language.visual_weights == "all" or ".linear_qkv" in name:
                total += (tokens - local_tokens) * of_row
            if language.visual_weights != "all" and ".linear_qkv" in name:
                total += num_tiles * config.model.num_tokens_per_tile * of_row
    return total


def visual_trains(config: RunConfig, layer: int, name: str) -> bool:
    """Whether the matrix `name` of a decoder layer, or the one of images beside it, trains."""
    frozen, module = frozen_patterns(config), f"{LANGUAGE}.decoder.layers.{layer}.{name}"
    kinds = (
        ["weight"]
        if config.model.language.visual_weights == "none"
        else ["weight", "visual_weight"]
    )
    return any(not is_frozen(f"{module}.{kind}", frozen) for kind in kinds)
