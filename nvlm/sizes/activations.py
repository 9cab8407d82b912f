"""Bytes that one micro-batch's forward pass keeps for its backward pass, on one process.

    layer_activations      of a decoder layer that is not recomputed whole
    stage_activations      of a pipeline stage's layers, projector and head, with it

A schedule keeps as many of these at a time as it has micro-batches under way. What kernels take
for a moment is not counted, and neither is what a recomputed layer takes while its turn is: a
`layer_activations` of it. A frozen encoder keeps nothing; one that trains is not reckoned here.

Of a layer with t tokens, n of them on this rank (t, or t / tensor with sequence parallelism):

With context parallelism t are the tokens of this rank's part of the row.

    norms       2 x (the input [n, h] and one fp32 per row; the output [n, h], where what follows
                trains)
    attention   values, and queries and keys after their rotation, [t, heads x d] each, and the
                result with an fp32 per head and token. With `local` layers the result of each
                document is joined to one more [t, heads x d], which is kept where the projection
                trains, and so are cosine and sine of the rotation, twice.
    MLP         gate and up [t, 2 f]; their product [t, f] where the second matrix trains
    dropout     with `train.hidden_dropout` a mask [n, h] of each addition to the residual, a byte
                for each number as a GPU has it (a CPU keeps numbers); attention keeps none
    adapters    what comes of their A [t, rank]; a matrix with an adapter keeps its input like one
                that trains

with heads and f divided by the tensor-parallel size. With selective recomputation no output of a
norm, no product, and with `local` layers of the results the joined one only. Cross-attention is in
nvlm/sizes/beside.py, images that are seen both ways in nvlm/sizes/visual_attention.py.
tests/sizes/test_activations.py holds it to what autograd keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvlm.config.adapters import LINEARS
from nvlm.config.schema import LanguageConfig, RunConfig
from nvlm.dtypes import DTYPES
from nvlm.sizes import beside, visual_attention, visual_weights
from nvlm.sizes.adapters import adapters_of, by_module, frozen_patterns
from nvlm.sizes.expert_layers import expert_ffn_hidden_size, expert_layers
from nvlm.sizes.parameters import LANGUAGE, PROJECTOR, component_parameters, is_frozen
from nvlm.sizes.pipeline import chunk_layers

_FP32 = DTYPES["fp32"].num_bytes


@dataclass(frozen=True)
class LayerActivations:
    """Of one decoder layer, in bytes."""

    norms: int
    attention: int
    mlp: int
    adapters: int = 0
    dropout: int = 0

    @property
    def total(self) -> int:
        return self.norms + self.attention + self.mlp + self.adapters + self.dropout


@dataclass(frozen=True)
class StageActivations:
    """Of one micro-batch on one process of a pipeline stage, in bytes."""

    layers: int
    projector: int  # the first stage's, for the tiles of the micro-batch
    head: int  # the last stage's: final norm, and the logits' softmax in fp32

    @property
    def total(self) -> int:
        return self.layers + self.projector + self.head


def layer_activations(
    config: RunConfig, layer: int, layer_implementation: str = "local"
) -> LayerActivations:
    """Of decoder layer `layer`, through which gradients pass, unless it is recomputed whole.

    Args:
        layer_implementation: `local` or `transformer_engine` (reckoned, not measured: its attention
            keeps one result, and its rotation no cosines of each layer).
    """
    language, tensor = config.model.language, config.parallel.tensor
    width = DTYPES[config.train.precision].num_bytes
    tokens, local_tokens = _num_tokens(config)
    trains = _trained_matrices(config, layer)
    keeps_all = config.train.recompute.language.granularity != "selective"

    norm_inputs = 2 * (width * local_tokens * language.hidden_size + _FP32 * local_tokens)
    num_outputs = trains["self_attention.linear_qkv"] + trains["mlp.linear_fc1"]
    norm_outputs = keeps_all * num_outputs * width * local_tokens * language.hidden_size

    heads, groups = language.num_attention_heads // tensor, language.num_query_groups // tensor
    per_head = width * tokens * language.head_dim
    attention = (heads + 2 * groups) * per_head
    if keeps_all or layer_implementation != "local":
        attention += heads * per_head + _FP32 * tokens * heads
    if language.qk_layernorm:
        # What is normalised, beside what comes of it and is rotated.
        attention += (heads + groups) * (per_head + _FP32 * tokens)
    if layer_implementation == "local":
        attention += trains["self_attention.linear_proj"] * heads * per_head + 4 * per_head

    if layer in expert_layers(language):
        mlp = _experts(config, layer)
    else:
        product = width * tokens * language.ffn_hidden_size // tensor
        mlp = 2 * product + (keeps_all and trains["mlp.linear_fc2"]) * product
    adapters = _adapters(config, layer)
    num_masks = 2 + (layer in config.model.cross_attention_layers)
    dropout = num_masks * _mask_of_dropout(config)
    return LayerActivations(norm_inputs + norm_outputs, attention, mlp, adapters, dropout)


def stage_activations(
    config: RunConfig, stage: int, num_tiles: int, layer_implementation: str = "local"
) -> StageActivations:
    """Of pipeline stage `stage`, all its chunks, for a micro-batch with `num_tiles` tiles."""
    parallel = config.parallel
    width, (_, local_tokens) = DTYPES[config.train.precision].num_bytes, _num_tokens(config)
    only_input = width * local_tokens * config.model.language.hidden_size
    layers = sum(
        only_input
        if index < _num_recomputed(config, len(chunk))
        else layer_activations(config, layer, layer_implementation).total
        + beside.layer_bytes(config, layer, num_tiles)
        + visual_attention.layer_bytes(config, num_tiles)
        + visual_weights.layer_bytes(config, layer, num_tiles)
        for chunk in chunk_layers(config, stage)
        for index, layer in enumerate(chunk)
    )
    if config.train.recompute.language.granularity == "full":
        # The table of angles, as long as the longest document may be; in fp32, and one for all.
        layers += _FP32 * config.stage.sequence_length * config.model.language.head_dim
        # What is added behind the first layers, which each of them has as an input; of tiles as
        # many rows as the largest image has.
        num_added = config.num_added_rows
        if config.model.stacks_tiles:
            num_added = min(num_added, max(0, num_tiles - 1))
        layers += (stage == 0) * num_added * only_input
    if stage == 0:
        layers += _mask_of_dropout(config)
    return StageActivations(
        layers + beside.row_bytes(config, num_tiles),
        projector=_projector(config, -(-num_tiles // parallel.context)) if stage == 0 else 0,
        head=_head(config) if stage == parallel.pipeline - 1 else 0,
    )


def _mask_of_dropout(config: RunConfig) -> int:
    if not config.train.hidden_dropout:
        return 0
    return _num_tokens(config)[1] * config.model.language.hidden_size


def _num_tokens(config: RunConfig) -> tuple[int, int]:
    """Of a micro-batch's part of a context-parallel rank, and those whose hidden states a rank
    holds between layers."""
    tokens = config.train.micro_batch_size * config.stage.sequence_length
    tokens = -(-tokens // config.parallel.context)
    return tokens, tokens // config.parallel.tensor if config.parallel.sequence else tokens


def _trained_matrices(config: RunConfig, layer: int) -> Mapping[str, bool]:
    """Name within a decoder layer -> whether it or its adapter trains, of the four matrices."""
    prefix, adapted = _layer(layer), by_module(config)
    return {
        name: visual_weights.visual_trains(config, layer, name) or f"{prefix}.{name}" in adapted
        for name in LINEARS
    }


def _adapters(config: RunConfig, layer: int) -> int:
    """What comes of A, of each token, and copies of the rows of B where parts alternate in it.

    DoRA keeps the output before its rows are scaled.
    """
    width, (tokens, local_tokens) = DTYPES[config.train.precision].num_bytes, _num_tokens(config)
    adapted, tensor, total = by_module(config), config.parallel.tensor, 0
    for name in LINEARS:
        if adapter := adapted.get(f"{_layer(layer)}.{name}"):
            is_column = adapter.matrix.split_axis == 0
            here = tokens if is_column else local_tokens
            rows = adapter.matrix.local_shape(tensor)[0]
            total += here * adapter.num_parts * adapter.settings.rank
            total += adapter.settings.dora * here * rows
            total += (adapter.num_blocks > 1) * rows * adapter.settings.rank
    return width * total


def _layer(layer: int) -> str:
    return f"{LANGUAGE}.decoder.layers.{layer}"


def _experts(config: RunConfig, layer: int) -> int:
    """Of a layer with experts, where tokens are spread evenly; recomputation leaves it as it is.

    A token is there for each of its `top_k` experts: what comes in and, of `f` channels, gate, up,
    their product, and the product by the token's share.
    """
    language, tensor = config.model.language, config.parallel.tensor
    moe, width = language.moe, DTYPES[config.train.precision].num_bytes
    assert moe is not None
    tokens = _num_tokens(config)[0] // tensor
    name = f"{_layer(layer)}.mlp.experts.local_experts.0.linear_fc"
    frozen = frozen_patterns(config)
    trains_in, trains_out = (not is_frozen(f"{name}{n}.weight", frozen) for n in (1, 2))
    of_copy = language.hidden_size * trains_in
    of_copy += (3 + trains_out) * expert_ffn_hidden_size(language)
    logits = 4 * _FP32 * tokens * moe.num_experts
    return moe.top_k * tokens * width * of_copy + logits


def _num_recomputed(config: RunConfig, num_layers: int) -> int:
    """Layers, of the `num_layers` of a chunk, of which nothing but the input is kept."""
    recompute = config.train.recompute.language
    if recompute.granularity != "full":
        return 0
    if recompute.num_layers is None:
        return num_layers
    return recompute.num_layers // config.parallel.virtual_pipeline


def _projector(config: RunConfig, num_tiles: int) -> int:
    """What the connector keeps, unless all of it is frozen and has no adapters."""
    model, frozen = config.model, frozen_patterns(config)
    adapted = any(adapter.matrix.component == PROJECTOR for adapter in adapters_of(config))
    rows = component_parameters(model, PROJECTOR)
    if not adapted and all(is_frozen(row.key, frozen) for row in rows):
        return 0
    kept = model.connector.kept_numbers(model.connector_sizes, config.parallel.tensor)
    width = DTYPES[config.train.precision].num_bytes
    of_tile = width * kept.in_precision + _FP32 * kept.in_fp32
    return num_tiles * model.num_connectors * of_tile


def _head(config: RunConfig) -> int:
    """Final norm as in a layer; softmax in fp32, and of each token its label and a mark."""
    language: LanguageConfig = config.model.language
    width = DTYPES[config.train.precision].num_bytes
    tokens, local_tokens = _num_tokens(config)
    matrix = (
        "embedding.word_embeddings"
        if language.share_embeddings_and_output_weights
        else "output_layer"
    )
    trains = not is_frozen(f"{LANGUAGE}.{matrix}.weight", frozen_patterns(config))
    norm = (1 + trains) * width * local_tokens * language.hidden_size + _FP32 * local_tokens
    return norm + tokens * (_FP32 * language.vocab_size // config.parallel.tensor + 8 + 1)
