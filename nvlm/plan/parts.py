"""What parts of the model take on one GPU for a micro-batch: layers, encoder, embedding, head."""

from __future__ import annotations

from dataclasses import replace

from nvlm.config.encoders.settings import EncoderStack
from nvlm.config.schema import RunConfig
from nvlm.plan.activations import layer_implementation
from nvlm.plan.adapters import adapter_passes
from nvlm.plan.communication import group
from nvlm.plan.operations import part_patch_flops, trainable_shares, trains
from nvlm.plan.seconds import NOTHING, Device, LayerShape, Passes, Seconds, layer_passes
from nvlm.plan.work import Work
from nvlm.sizes.expert_layers import active_ffn_hidden_size
from nvlm.sizes.parameters import LANGUAGE, PROJECTOR, VISION, encoder_parts

# Bytes per channel of a visual token: class token dropped, patches laid side by side, normalised.
_SHUFFLE_BYTES = 20


def num_tokens(config: RunConfig) -> int:
    """Of a micro-batch, on one context-parallel rank."""
    tokens = config.stage.sequence_length * config.train.micro_batch_size
    return -(-tokens // config.parallel.context)


def decoder_layer(config: RunConfig, work: Work, device: Device) -> Passes:
    """One layer of the decoder that is not recomputed."""
    language, numbers, rows = config.model.language, device.assumptions, num_tokens(config)
    tensor = config.parallel.tensor
    split = tensor if config.parallel.sequence else 1
    heads = language.num_attention_heads // tensor
    groups = language.num_query_groups // tensor
    hidden, width = language.hidden_size, language.head_dim
    # Experts are whole, and see a process's share of the tokens: as much as of all, cut.
    ffn = active_ffn_hidden_size(language) / tensor
    # Of whole rows between the linear layers, and of this rank's heads and MLP.
    local, turned, inner = rows * hidden / split, rows * (heads + groups) * width, rows * ffn
    scale = device.number / 2

    def moved(norm: float, activation: float) -> float:
        bytes_ = 2 * local * (norm + numbers["residual_bytes"])
        bytes_ += turned * norm * language.qk_layernorm
        return scale * (bytes_ + turned * numbers["rotary_bytes"] + inner * activation)

    # Chunks of documents are dealt so that context-parallel ranks have as many.
    pairs = work.token_pairs * config.train.micro_batch_size / config.parallel.context
    products = (
        (hidden, (heads + 2 * groups) * width),
        (heads * width, hidden),
        (hidden, 2 * ffn),
        (ffn, hidden),
    )
    has_gradients = trainable_shares(config)[LANGUAGE] > 0
    accumulated = 0.0
    if has_gradients:
        weights = sum(inner * columns for inner, columns in products)
        accumulated = weights * numbers["accumulation_bytes"]
    shape = LayerShape(
        rows=rows,
        products=products,
        hidden=rows * hidden,
        split=split,
        attention=2 * pairs * heads * width,
        elementwise=(
            moved(numbers["norm_bytes_forward"], numbers["activation_bytes_forward"]),
            moved(numbers["norm_bytes_backward"], numbers["activation_bytes_backward"])
            + accumulated,
        ),
        trains=has_gradients,
    )
    adapters = adapter_passes(config, LANGUAGE, rows, device)
    layer = layer_passes(shape, device) + adapters * (1 / language.num_layers)
    return _with_travelling_keys(layer, rows * groups * width, device)


def _with_travelling_keys(layer: Passes, numbers: float, device: Device) -> Passes:
    """With what context-parallel ranks send each other: keys and values, `numbers` of each, from
    rank to rank until all have had them; backwards their gradients too. Attention goes on beside.
    """
    group = device.context_group
    if group.size == 1:
        return layer
    seconds = (group.size - 1) * group.send_seconds(2 * numbers * device.number)

    def beside(one: Seconds, sent: float) -> Seconds:
        hidden = min(sent, one.attention)
        return one + Seconds(messages=sent - hidden, hidden_messages=hidden)

    return Passes(beside(layer.forward, seconds), beside(layer.backward, 2 * seconds))


def cross_attention(config: RunConfig, work: Work, device: Device) -> Passes:
    """Of NVLM-X and NVLM-H, spread over all layers of the decoder, as if each had some of it.

    A sample's tokens are taken to see all of its tiles, and thumbnails to be among these.
    """
    model, numbers, rows = config.model, device.assumptions, num_tokens(config)
    language, tensor = model.language, config.parallel.tensor
    share = len(model.cross_attention_layers) / language.num_layers
    if not share:
        return Passes(NOTHING, NOTHING)
    tiles = work.num_tiles * config.train.micro_batch_size
    beside, hidden = tiles * model.num_tokens_per_tile, language.hidden_size
    queries = language.num_attention_heads // tensor * language.head_dim
    values = 2 * model.num_cross_attention_groups // tensor * language.head_dim
    products = device.product(rows, hidden, queries) + device.product(rows, queries, hidden)
    products += device.product(beside, hidden, values)
    pairs = rows * beside / max(1, work.num_samples * config.train.micro_batch_size)
    local = rows * hidden / (tensor if config.parallel.sequence else 1)

    def moved(norm: float) -> float:
        return device.moving(device.number * local * (norm + numbers["residual_bytes"]) / 2)

    summed = _reduced(device, rows * hidden)
    trains = trainable_shares(config)[LANGUAGE] > 0
    forward = Seconds(
        matmul=products,
        attention=device.attention(4 * pairs * queries, "forward"),
        elementwise=moved(numbers["norm_bytes_forward"]),
        messages=summed,
    )
    backward = Seconds(
        matmul=products * (1 + trains),
        attention=device.attention(10 * pairs * queries, "backward"),
        elementwise=moved(numbers["norm_bytes_backward"]),
        messages=summed,
    )
    return Passes(forward, backward) * share


def decoder_layers(config: RunConfig, num_layers: int, layer: Passes) -> tuple[Passes, Seconds]:
    """Layers of a chunk of a stage, and what of their backward passes is computed again."""
    recompute = config.train.recompute.language
    again = NOTHING
    if recompute.granularity == "full":
        wanted = recompute.num_layers
        recomputed = num_layers
        if wanted is not None:
            recomputed = min(num_layers, wanted // config.parallel.virtual_pipeline)
        again = layer.forward * recomputed
    elif recompute.granularity == "selective":
        again = _selectively(config, layer.forward) * num_layers
    passes = layer * num_layers
    return Passes(passes.forward, passes.backward + again), again


def encoder(config: RunConfig, num_tiles: float, device: Device) -> tuple[Passes, Seconds]:
    """The encoder for so many tiles, and what of its backward pass is computed again."""
    passes, again = Passes(NOTHING, NOTHING), NOTHING
    peak = device.assumptions["peak_flops"] * device.assumptions["matmul_efficiency"]
    for name, part in encoder_parts(config.model).items():
        of_part, of_part_again = _stack(config, name, part, num_tiles, device)
        patches = Seconds(matmul=num_tiles * part_patch_flops(part) / peak)
        if not trains(config, name):
            passes = passes + Passes(of_part.forward + patches, NOTHING)
            continue
        backward = of_part.backward + patches + of_part_again
        passes = passes + Passes(of_part.forward + patches, backward)
        again = again + of_part_again
    return passes, again


def _stack(
    config: RunConfig, name: str, stack: EncoderStack, num_tiles: float, device: Device
) -> tuple[Passes, Seconds]:
    """The same of the layers of the encoder `name`; what is computed again is not in its backward
    pass."""
    numbers, tensor = device.assumptions, device.tensor_group.size if stack.is_split else 1
    rows, hidden = num_tiles * stack.num_positions, stack.hidden_size
    width = stack.attention_width / tensor
    inner, ffn = (size / tensor for size in stack.inner_widths)
    scale = device.number / 2

    def moved(norm: float, factor: float) -> float:
        bytes_ = rows * hidden * 2 * (norm + factor * numbers["layer_scale_bytes"])
        bytes_ += rows * width * 2 * norm * stack.qk_layernorm
        return scale * (bytes_ + rows * inner * factor * 8)  # bias and GELU

    shape = LayerShape(
        rows=rows,
        products=((hidden, 3 * width), (width, hidden), (hidden, inner), (ffn, hidden)),
        hidden=rows * hidden,
        split=1,
        attention=4 * rows * stack.num_positions * width,
        elementwise=(
            moved(numbers["norm_bytes_forward"], 1),
            moved(numbers["norm_bytes_backward"], 2),
        ),
        trains=trains(config, name),
    )
    if not stack.is_split:  # nothing is summed over tensor-parallel ranks
        device = replace(device, tensor_group=group(1, 1, numbers))
    num_layers = stack.num_computed_layers
    adapters = adapter_passes(config, name, rows, device)
    layer = layer_passes(shape, device) + adapters * (1 / num_layers)
    recompute, again = config.train.recompute.vision, NOTHING
    if not stack.is_split:  # only layers of Megatron-core are computed again
        return layer * num_layers, again
    if recompute.granularity == "full":
        again = layer.forward * (recompute.num_layers or num_layers)
    elif recompute.granularity == "selective":
        again = _selectively(config, layer.forward) * num_layers
    return layer * num_layers, again


def _selectively(config: RunConfig, forward: Seconds) -> Seconds:
    """Norms and activations and, with `local` layers, the attention."""
    again = Seconds(elementwise=forward.elementwise)
    if layer_implementation(config) == "local":
        again = again + Seconds(attention=forward.attention)
    return again


def projector(config: RunConfig, num_tiles: float, device: Device) -> Passes:
    """The connector, and its output in the place of the placeholders."""
    model, numbers = config.model, device.assumptions
    language, tensor = model.language, config.parallel.tensor
    rows = num_tiles * model.num_tokens_per_tile
    products, moved_numbers = 0.0, num_tiles * model.connector_sizes.num_patches * _SHUFFLE_BYTES
    moved_numbers *= model.connector_sizes.channels
    number = model.num_connectors
    *inner, last = model.connector.products(model.connector_sizes)
    for product in inner:  # its output is split and goes through the activation
        width = product.outputs / (tensor if product.is_split else 1)
        products += device.product(num_tiles * product.rows, product.columns, width)
        moved_numbers += num_tiles * product.rows * width * 4
    columns = last.columns / (tensor if last.is_split else 1)
    products += device.product(num_tiles * last.rows, columns, last.outputs)
    scale = device.number / 2
    splice = num_tokens(config) * language.hidden_size * numbers["splice_bytes"]
    moved_numbers = number * moved_numbers + max(number, 1 + config.num_added_rows) * splice
    products, moved = number * products, device.moving(scale * moved_numbers)
    summed = number * _reduced(device, rows * language.hidden_size) if last.is_split else 0.0
    gathered = _image_tokens_seconds(config, rows, device)
    forward = Seconds(matmul=products, elementwise=moved, messages=summed + gathered)
    if not (trains(config, PROJECTOR) or trains(config, VISION)):
        return Passes(forward, NOTHING)
    factor = 1 + (trainable_shares(config)[PROJECTOR] > 0)
    return Passes(
        forward, Seconds(matmul=factor * products, elementwise=2 * moved, messages=gathered)
    )


def _image_tokens_seconds(config: RunConfig, rows: float, device: Device) -> float:
    """Of bringing the image tokens of all context-parallel ranks together; each has `rows`."""
    group = device.context_group
    if group.size == 1:
        return 0.0
    numbers = group.size * rows * config.model.language.hidden_size
    return group.gather_seconds(numbers * device.number)


def embedding(config: RunConfig, device: Device) -> Passes:
    """Rows looked up in this rank's part of the vocabulary, summed over ranks."""
    numbers = num_tokens(config) * config.model.language.hidden_size
    moved = device.moving(3 * device.number * numbers)
    forward = Seconds(elementwise=moved, messages=_reduced(device, numbers))
    return Passes(forward, Seconds(elementwise=moved))


def head(config: RunConfig, device: Device) -> Passes:
    """Final norm, output layer and loss."""
    language, numbers, rows = config.model.language, device.assumptions, num_tokens(config)
    columns = language.vocab_size / config.parallel.tensor
    product = device.product(rows, language.hidden_size, columns)
    scale = device.number / 2
    has_gradients = trainable_shares(config)[LANGUAGE] > 0
    gathered = 0.0
    if config.parallel.sequence:
        gathered = device.tensor_group.gather_seconds(rows * language.hidden_size * device.number)
    else:
        # The gradient of the hidden states is a sum over ranks.
        gathered = _reduced(device, rows * language.hidden_size) / 2
    logits = rows * columns
    return Passes(
        Seconds(
            matmul=product,
            elementwise=device.moving(scale * logits * numbers["logit_bytes_forward"]),
            messages=gathered,
        ),
        Seconds(
            matmul=(1 + has_gradients) * product,
            elementwise=device.moving(scale * logits * numbers["logit_bytes_backward"]),
            messages=gathered,
        ),
    )


def _reduced(device: Device, num_numbers: float) -> float:
    if device.tensor_group.size == 1:
        return 0.0
    return device.tensor_group.reduce_seconds(num_numbers * device.number)
