"""Bytes that passes keep and take, chunk by chunk, on one process.

What the decoder's layers, the projector and the head keep is `nvlm.sizes.activations`, which is
held to what autograd keeps. What is here beside it is reckoned only: an encoder that trains, and
what comes and goes within a pass.
"""

from __future__ import annotations

from nvlm.config.encoders.settings import EncoderStack
from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.plan.operations import trains
from nvlm.sizes.activations import layer_activations, stage_activations
from nvlm.sizes.parameters import encoder_parts
from nvlm.sizes.pipeline import chunk_layers

_WIDE = DTYPES["fp32"].num_bytes


def layer_implementation(config: RunConfig) -> str:
    """What `auto` is on a GPU with Transformer Engine, as in the image of docker/."""
    wanted = config.model.layer_implementation
    if wanted != "auto":
        return wanted
    return "local" if config.train.precision == "fp32" else "transformer_engine"


def chunk_bytes(config: RunConfig, stage: int, num_tiles: int) -> list[float]:
    """Kept by each chunk of a pipeline stage for a micro-batch with `num_tiles` tiles.

    With the projector's in the first, and without the head's.
    """
    implementation, recompute = layer_implementation(config), config.train.recompute.language
    chunks = chunk_layers(config, stage)
    of_stage = stage_activations(config, stage, num_tiles, implementation)
    only_input = _num_local_numbers(config) * _width(config)
    kept: list[float] = []
    for chunk in chunks:
        recomputed = 0
        if recompute.granularity == "full":
            wanted = recompute.num_layers
            recomputed = len(chunk) if wanted is None else wanted // len(chunks)
        whole = [
            layer_activations(config, layer, implementation).total for layer in chunk[recomputed:]
        ]
        kept.append(sum(whole) + only_input * len(chunk[:recomputed]))
    # The table of angles, where layers are recomputed.
    kept[0] += of_stage.layers - sum(kept) + of_stage.projector
    if stage == 0:
        kept[0] += _encoder_bytes(config, -(-num_tiles // config.parallel.context))
    return kept


def head_bytes(config: RunConfig, stage: int) -> int:
    """On the last stage: what the head keeps, and beside it logits and their gradient."""
    kept = stage_activations(config, stage, 0, layer_implementation(config)).head
    rows = config.model.language.vocab_size // config.parallel.tensor
    return kept + 2 * _num_tokens(config) * rows * _width(config) if kept else 0


def encoding_bytes(config: RunConfig, num_tiles: float) -> float:
    """While an encoder without gradients runs: a few tensors of a layer, some in fp32."""
    parts = config.model.vision.parts.values()
    return max(_encoding_bytes(config, part, num_tiles) for part in parts)


def _encoding_bytes(config: RunConfig, stack: EncoderStack, num_tiles: float) -> float:
    width = _width(config)
    tensor = config.parallel.tensor if stack.is_split and not config.parallel.shares_tiles else 1
    hidden = 2 * stack.hidden_size * (_WIDE + width)
    inner = 2 * stack.inner_widths[0] / tensor * width
    # Of several layers: their hidden states, and these side by side.
    hidden += 2 * (stack.feature_size - stack.hidden_size) * width
    return num_tiles * stack.num_positions * (hidden + inner)


def backward_bytes(config: RunConfig, stage: int) -> int:
    """While a layer's backward pass runs: gradients, fp32 copies of a norm, a matrix's gradient.

    A layer that is recomputed has all of its activations again, one layer at a time.
    """
    language, width = config.model.language, _width(config)
    norm = 4 * _WIDE * _num_local_numbers(config)
    matrix = 2 * language.ffn_hidden_size * language.hidden_size // config.parallel.tensor * width
    layers = [layer for chunk in chunk_layers(config, stage) for layer in chunk]
    if config.train.recompute.language.granularity != "full" or not layers:
        return norm + matrix
    return norm + matrix + layer_activations(config, layers[0], layer_implementation(config)).total


def _encoder_bytes(config: RunConfig, num_tiles: float) -> float:
    """Kept by the encoders that train."""
    return sum(
        _stack_bytes(config, part, num_tiles)
        for name, part in encoder_parts(config.model).items()
        if trains(config, name)
    )


def _stack_bytes(config: RunConfig, stack: EncoderStack, num_tiles: float) -> float:
    number, recompute = _width(config), config.train.recompute.vision
    positions, hidden = num_tiles * stack.num_positions, stack.hidden_size
    tensor = config.parallel.tensor if stack.is_split else 1
    of_input = positions * hidden * number
    width = stack.attention_width / tensor
    norm = 2 * positions * hidden * number
    # The query and key norms are operations of torch's, one by one.
    of_norms = 2 * positions * width * (_WIDE + 2 * number) * stack.qk_layernorm
    attention = 5 * positions * width * number
    mlp = positions * sum(stack.inner_widths) / tensor * number
    layer_scale = 2 * positions * hidden * number
    whole = 2 * norm + of_norms + attention + mlp + layer_scale
    num_layers, recomputed = stack.num_computed_layers, 0
    if recompute.granularity == "full" and stack.is_split:
        recomputed = recompute.num_layers or num_layers
    return recomputed * of_input + (num_layers - recomputed) * whole


def _width(config: RunConfig) -> int:
    return DTYPES[config.train.precision].num_bytes


def _num_tokens(config: RunConfig) -> int:
    """Of a micro-batch, on one context-parallel rank."""
    tokens = config.stage.sequence_length * config.train.micro_batch_size
    return -(-tokens // config.parallel.context)


def _num_local_numbers(config: RunConfig) -> int:
    """Of the hidden states that a rank holds between layers."""
    split = config.parallel.tensor if config.parallel.sequence else 1
    return _num_tokens(config) // split * config.model.language.hidden_size
