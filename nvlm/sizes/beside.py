"""Bytes that cross-attention keeps of a micro-batch for its backward pass, on one process.

Of each layer that has it and is not recomputed whole, with t tokens, n of them on this rank, and k
tokens beside (those of all tiles: of a hybrid's thumbnails, too, and without its tags):

    norm        the input [n, h] and one fp32 per row; the output [n, h] where queries train
    attention   queries [t, heads x d], keys and values [k, 2 x groups x d]; unless it is
                recomputed, keys and values once more for tags, which are stacked, and the results
                [t, heads x d] with an fp32 per head and token; the joined results where the
                projection trains
    gate        what it multiplies [n, h], where it trains

and once for a pipeline stage the row beside [k, h], its part with sequence parallelism, of levels
that are read in turn as often as there are levels.
"""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.sizes.adapters import frozen_patterns
from nvlm.sizes.parameters import LANGUAGE, is_frozen

_FP32 = DTYPES["fp32"].num_bytes


def row_bytes(config: RunConfig, num_tiles: int) -> int:
    """Of the row beside, which all layers of a stage share."""
    if config.model.fusion == "decoder_only":
        return 0
    num_ranks = config.parallel.tensor if config.parallel.sequence else 1
    num_beside = num_tiles * config.model.num_tokens_per_tile // num_ranks
    num_beside *= config.model.num_levels_beside
    return num_beside * config.model.language.hidden_size * _width(config)


def layer_bytes(config: RunConfig, layer: int, num_tiles: int) -> int:
    """Of one layer; 0 where it has no cross-attention, or no tile is there."""
    model, width = config.model, _width(config)
    if layer not in model.cross_attention_layers or not num_tiles:
        return 0
    language, parallel = model.language, config.parallel
    tokens = config.train.micro_batch_size * config.stage.sequence_length
    local_tokens = tokens // parallel.tensor if parallel.sequence else tokens
    of_hidden = local_tokens * language.hidden_size * width
    heads = language.num_attention_heads // parallel.tensor
    of_queries = tokens * heads * language.head_dim * width
    of_values = num_tiles * model.num_tokens_per_tile * language.head_dim * width
    of_values *= 2 * model.num_cross_attention_groups // parallel.tensor
    norm = of_hidden + _FP32 * local_tokens + _trains(config, layer, "linear_q.weight") * of_hidden
    attention = of_queries + of_values
    if config.train.recompute.language.granularity != "selective":
        has_tags = model.fusion == "cross_attention"
        attention += has_tags * of_values + of_queries + _FP32 * tokens * heads
    attention += _trains(config, layer, "linear_proj.weight") * of_queries
    return norm + attention + _trains(config, layer, "gate") * of_hidden


def _trains(config: RunConfig, layer: int, name: str) -> bool:
    module = "cross_attn_bda" if name == "gate" else "cross_attention"
    whole = f"{LANGUAGE}.decoder.layers.{layer}.{module}.{name}"
    return not is_frozen(whole, frozen_patterns(config))


def _width(config: RunConfig) -> int:
    return DTYPES[config.train.precision].num_bytes
