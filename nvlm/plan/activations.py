"""Bytes that a micro-batch keeps for its backward pass, and those that come and go within a pass.

Of one process. The decoder's tokens are those of a micro-batch; between its linear layers sequence
parallelism leaves each tensor rank a share of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.plan.operations import trainable_shares
from nvlm.sizes.parameters import LANGUAGE, PROJECTOR, VISION
from nvlm.sizes.pipeline import chunk_layers

_WIDE = DTYPES["fp32"].num_bytes


@dataclass(frozen=True)
class _Sizes:
    """What all formulas start from; numbers of one process."""

    number: int  # bytes of a number
    tokens: int  # of a micro-batch
    split_tokens: int  # of them, between linear layers
    tensor: int


def _sizes(config: RunConfig) -> _Sizes:
    tokens, tensor = (
        config.stage.sequence_length * config.train.micro_batch_size,
        config.parallel.tensor,
    )
    return _Sizes(
        DTYPES[config.train.precision].num_bytes,
        tokens,
        tokens // tensor if config.parallel.sequence else tokens,
        tensor,
    )


def layer_bytes(config: RunConfig) -> int:
    """Kept by one layer of the decoder that is not recomputed."""
    language, sizes = config.model.language, _sizes(config)
    trains = trainable_shares(config)[LANGUAGE] > 0
    heads = language.num_attention_heads // sizes.tensor
    groups = language.num_query_groups // sizes.tensor
    # A norm keeps its input in fp32 and, where weights train, what it gave before and after them.
    norm = sizes.split_tokens * language.hidden_size * (_WIDE + 2 * sizes.number * trains)
    of_heads = heads + 2 * groups + heads + groups + heads
    attention = sizes.tokens * language.head_dim * of_heads * sizes.number
    attention += 8 * sizes.tokens * language.head_dim  # angles and what the softmax was divided by
    mlp = sizes.tokens * language.ffn_hidden_size // sizes.tensor * sizes.number * (4 + trains)
    return 2 * norm + attention + mlp


def layer_input_bytes(config: RunConfig) -> int:
    """Hidden states that go into a layer: all that is kept of one that is recomputed."""
    sizes = _sizes(config)
    return sizes.split_tokens * config.model.language.hidden_size * sizes.number


def chunk_bytes(config: RunConfig, stage: int) -> list[int]:
    """Kept by the decoder's layers of each chunk of a pipeline stage, for one micro-batch."""
    recompute = config.train.recompute.language
    chunks = [len(layers) for layers in chunk_layers(config, stage)]
    whole, only_input = layer_bytes(config), layer_input_bytes(config)
    kept = []
    for num_layers in chunks:
        recomputed = 0
        if recompute.granularity == "full":
            wanted = recompute.num_layers
            recomputed = num_layers if wanted is None else min(num_layers, wanted // len(chunks))
        kept.append((num_layers - recomputed) * whole + recomputed * only_input)
    return kept


def visual_bytes(config: RunConfig, num_tiles: float) -> float:
    """Kept of encoder and projector for a micro-batch with so many tiles."""
    vision, sizes, shares = config.model.vision, _sizes(config), trainable_shares(config)
    kept = 0.0
    if shares[PROJECTOR] or shares[VISION]:
        tokens = num_tiles * vision.num_tokens_per_tile
        # Patches side by side, twice (the norm's input and output); the MLP before and after GELU.
        kept += tokens * 2 * vision.token_size * sizes.number
        kept += tokens * 2 * config.model.projector.ffn_hidden_size / sizes.tensor * sizes.number
    if shares[VISION]:
        kept += num_tiles * vision.num_layers * _encoder_layer_bytes(config)
    return kept


def _encoder_layer_bytes(config: RunConfig) -> float:
    """Kept by one layer of an encoder that trains, for one tile."""
    vision, sizes, recompute = config.model.vision, _sizes(config), config.train.recompute.vision
    positions, hidden = vision.num_patches + 1, vision.hidden_size
    of_input = positions * hidden * sizes.number
    width = vision.num_stored_attention_heads * vision.head_dim / sizes.tensor
    norm = positions * hidden * (_WIDE + 2 * sizes.number)
    query_key_norms = 2 * positions * width * (_WIDE + 2 * sizes.number) * vision.qk_layernorm
    attention = positions * width * 5 * sizes.number
    mlp = 2 * positions * vision.ffn_hidden_size / sizes.tensor * sizes.number
    layer_scale = 2 * positions * hidden * sizes.number
    whole = 2 * norm + query_key_norms + attention + mlp + layer_scale
    if recompute.granularity != "full":
        return whole
    share = (recompute.num_layers or vision.num_layers) / vision.num_layers
    return share * of_input + (1 - share) * whole


def logits_bytes(config: RunConfig) -> int:
    """On the last stage: logits, their softmax in fp32 and their gradient."""
    sizes = _sizes(config)
    rows = config.model.language.vocab_size // sizes.tensor
    return sizes.tokens * rows * (2 * sizes.number + _WIDE)


def encoding_bytes(config: RunConfig, num_tiles: float) -> float:
    """While an encoder without gradients runs: a few tensors of a layer, some in fp32."""
    vision, sizes = config.model.vision, _sizes(config)
    positions = num_tiles * (vision.num_patches + 1)
    wide = 2 * vision.hidden_size * (_WIDE + sizes.number)
    return positions * (wide + 2 * vision.ffn_hidden_size / sizes.tensor * sizes.number)


def backward_bytes(config: RunConfig) -> int:
    """While a layer's backward pass runs: gradients, fp32 copies of a norm, a matrix's gradient.

    A layer that is recomputed has all of its activations again, one layer at a time.
    """
    language, sizes = config.model.language, _sizes(config)
    norm = 4 * _WIDE * sizes.split_tokens * language.hidden_size
    matrix = 2 * language.ffn_hidden_size * language.hidden_size // sizes.tensor * sizes.number
    again = config.train.recompute.language.granularity == "full"
    return norm + matrix + again * layer_bytes(config)
