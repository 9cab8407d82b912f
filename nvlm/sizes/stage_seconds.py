"""What the parts of the model cost in a micro-batch, by which `parallel.layout: auto` cuts.

    seconds = operations / matrix rate + bytes through memory / memory rate
              + bytes of tensor-parallel sums / message rate

of one GPU, forwards and backwards, as far as the stage trains. The rates are what large kernels
reach on an H100, not its peak; the cut depends on their ratios alone. Tiles are the most that a
sequence may have: with fewer the first pipeline stage waits a little, and with more than it was
cut for all others would wait for it. Left out: messages between pipeline stages, launches of
kernels, ranks that wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.config.schema import RunConfig
from nvlm.sizes.flops import forward_flops, trainable_share
from nvlm.sizes.parameters import LANGUAGE, PROJECTOR, VISION
from nvlm.sizes.visual import VisualLayout


@dataclass(frozen=True)
class Rates:
    """What a GPU does in a second."""

    operations: float  # floating-point, of bf16 matrix products
    memory_bytes: float  # read and written
    message_bytes: float  # of a tensor that is summed over the tensor-parallel ranks of a node


# 989e12 and 3.35e12 are the data sheet's peaks, 450e9 is NVLink's in one direction. Matrix products
# of a training reach about 0.55 of the first, elementwise kernels 0.8 of the second, and a sum over
# eight ranks moves each byte about twice.
H100 = Rates(operations=550e12, memory_bytes=2.7e12, message_bytes=230e9)

# Bytes read and written per number of a token's hidden state by what is not a matrix product of a
# layer, in bf16 with fused kernels, forwards: two norms (4 each) and two sums (6 each); the
# encoder has factors on its two outputs besides. Backwards twice as many.
_LAYER_BYTES, _VISION_LAYER_BYTES = 20, 32
# The same per number inside the MLP: two read and one written, or one and one.
_SWIGLU_BYTES, _GELU_BYTES = 6, 4
# Per logit: written, read for the maximum, the sum and the gradient, in bf16 and fp32.
_LOGIT_BYTES = 20
# Of the backward pass's sums, what the gradients of weights do not hide.
_EXPOSED = 0.35
# A number in bf16, and the sums over ranks of a layer in each direction.
_NUMBER_BYTES, _NUM_SUMS = 2, 2


@dataclass(frozen=True)
class PartSeconds:
    """Of one micro-batch and one GPU, forwards and backwards."""

    # With what is computed twice, and the projector; the projector alone where all processes encode
    # tiles before the pipeline starts.
    encoder: float
    embedding: float
    layer: float  # of the decoder, with what `selective` computes twice
    recomputed: float  # added to a layer that is recomputed whole
    head: float  # final norm, output layer and loss


def expected_tiles(config: RunConfig) -> int:
    """The most tiles that a micro-batch can have: those of one image per sample, or of a pack."""
    stage, visual = config.stage, VisualLayout.from_config(config)
    if stage.packing:
        room = stage.sequence_length // config.num_tokens_per_tagged_tile
    else:
        room = visual.max_tiles_per_image
    budget = stage.max_tiles_per_sequence
    return config.train.micro_batch_size * (room if budget is None else min(room, budget))


def part_seconds(config: RunConfig, rates: Rates = H100) -> PartSeconds:
    """Of each part of the model on its tensor-parallel ranks."""
    language, tensor = config.model.language, config.parallel.tensor
    num_tokens = config.stage.sequence_length * config.train.micro_batch_size
    forward = forward_flops(config.model)
    head_operations = 2 * language.hidden_size * language.vocab_size
    layers_per_token = (forward.per_token - head_operations) / language.num_layers
    attention = forward.per_token_pair / language.num_layers * num_tokens
    attention *= config.stage.sequence_length
    split = tensor if config.parallel.sequence else 1
    share = trainable_share(config, LANGUAGE)
    layer = _Layers(
        operations=layers_per_token * num_tokens / tensor,
        attention=attention / tensor,
        memory_bytes=num_tokens
        * (
            _LAYER_BYTES * language.hidden_size / split
            + _SWIGLU_BYTES * language.ffn_hidden_size / tensor
        ),
        message_bytes=_message_bytes(tensor, num_tokens * language.hidden_size),
    )
    granularity = config.train.recompute.language.granularity
    head_bytes = _LOGIT_BYTES * num_tokens * language.vocab_size / tensor
    head = head_operations * num_tokens / tensor
    hidden_bytes = _NUMBER_BYTES * num_tokens * language.hidden_size
    return PartSeconds(
        encoder=_encoder_seconds(config, rates),
        # Rows are gathered and summed over ranks, image embeddings written over them; the same
        # backwards.
        embedding=6 * hidden_bytes / rates.memory_bytes
        + _message_bytes(tensor, num_tokens * language.hidden_size)
        / _NUM_SUMS
        / rates.message_bytes,
        layer=layer.forward(rates)
        + layer.backward(rates, share)
        + (layer.attention / rates.operations if granularity == "selective" else 0.0),
        recomputed=layer.forward(rates) if granularity == "full" else 0.0,
        head=(2 + share) * head / rates.operations + head_bytes / rates.memory_bytes,
    )


@dataclass(frozen=True)
class _Layers:
    """What layers take forwards, of one GPU."""

    operations: float  # with weights
    attention: float  # operations without
    memory_bytes: float
    message_bytes: float

    def forward(self, rates: Rates) -> float:
        return (
            (self.operations + self.attention) / rates.operations
            + self.memory_bytes / rates.memory_bytes
            + self.message_bytes / rates.message_bytes
        )

    def backward(self, rates: Rates, trainable: float) -> float:
        """`trainable`: the share of the weights that have gradients."""
        exposed = 1 - trainable * (1 - _EXPOSED)
        return (
            ((1 + trainable) * self.operations + 2 * self.attention) / rates.operations
            + 2 * self.memory_bytes / rates.memory_bytes
            + exposed * self.message_bytes / rates.message_bytes
        )


def _encoder_seconds(config: RunConfig, rates: Rates) -> float:
    """Of encoder and projector for `expected_tiles`, on the first pipeline stage."""
    vision, tensor = config.model.vision, config.parallel.tensor
    num_tiles = expected_tiles(config)
    num_positions = num_tiles * (vision.num_patches + 1)
    forward = forward_flops(config.model)
    width = vision.num_stored_attention_heads * vision.head_dim
    attention = 4 * vision.num_layers * width * (vision.num_patches + 1) * num_positions
    layers = _Layers(
        operations=(forward.encoder_per_tile * num_tiles - attention) / tensor,
        attention=attention / tensor,
        memory_bytes=vision.num_layers
        * num_positions
        * (
            _VISION_LAYER_BYTES * vision.hidden_size + _GELU_BYTES * vision.ffn_hidden_size / tensor
        ),
        message_bytes=vision.num_layers
        * _message_bytes(tensor, num_positions * vision.hidden_size),
    )
    share = trainable_share(config, VISION)
    seconds = 0.0 if config.parallel.shares_tiles else layers.forward(rates)
    if share:
        granularity = config.train.recompute.vision.granularity
        seconds += layers.backward(rates, share)
        seconds += {
            "none": 0.0,
            "selective": layers.attention / rates.operations,
            "full": layers.forward(rates) * _recomputed_share(config),
        }[granularity]
    visual = VisualLayout.from_config(config)
    num_projected = visual.num_tokens(num_tiles) + visual.num_tokens_beside(num_tiles)
    passes = 2 + trainable_share(config, PROJECTOR)
    projector = forward.projector_per_token * num_projected / tensor
    return seconds + passes * projector / rates.operations


def _recomputed_share(config: RunConfig) -> float:
    wanted, num_layers = config.train.recompute.vision.num_layers, config.model.vision.num_layers
    return (wanted or num_layers) / num_layers


def _message_bytes(tensor: int, num_numbers: int) -> float:
    """Summed over the tensor-parallel ranks by one layer in one direction."""
    return 0.0 if tensor == 1 else float(_NUM_SUMS * _NUMBER_BYTES * num_numbers)
