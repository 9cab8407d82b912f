"""NVLM-D: vision encoder, pixel shuffle, projector and decoder as one Megatron-core model.

Shape suffixes: t tokens of the micro-batch (its packed documents in one row), n tiles, p patches
and q tokens of a tile, h language hidden size, v vocabulary rows of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.inference.contexts import BaseInferenceContext
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from nvlm import platform
from nvlm.batch import MicroBatch
from nvlm.config.schema import RunConfig
from nvlm.megatron.extra_state import keys_but_extra_state, without_extra_state
from nvlm.megatron.fp8_state import begin_scaling, scaling_tensors
from nvlm.megatron.recomputed_inputs import recomputable
from nvlm.model.connectors.merging import merge_tokens
from nvlm.model.connectors.table import build_connector
from nvlm.model.decoders.cached import layer_shapes
from nvlm.model.decoders.deepstack import with_additions
from nvlm.model.decoders.qwen2 import build_language_model
from nvlm.model.decoders.stacking import stacked_without_holes, uneven_rows
from nvlm.model.encoders.table import build_encoder
from nvlm.model.parts.adapters import add_adapters, sharded_adapters
from nvlm.model.parts.alignment import add_alignment, levels_of, with_mixed_levels
from nvlm.model.parts.attention import packed_documents
from nvlm.model.parts.cache import LayerShape
from nvlm.model.parts.dropout import drop_entering
from nvlm.model.parts.layers import LayerParts, layer_parts
from nvlm.model.parts.router import RouterLosses
from nvlm.model.parts.soft_tags import add_soft_tags, soft_tags_of
from nvlm.model.parts.transformer_config import (
    connector_transformer_config,
    language_transformer_config,
)
from nvlm.model.parts.whole_encoder import mark_copies, mark_whole
from nvlm.model.placement import check_stage
from nvlm.model.rows import (
    PromptImages,
    Rows,
    all_tokens,
    one_after_another,
    sights_of,
    split_rows,
    visual_tokens,
    with_levels,
)
from nvlm.model.splice import splice, with_zero_gradient
from nvlm.model.visual import Visual
from nvlm.parallel.groups import Parallel, alone
from nvlm.platform.attention import choose_attention
from nvlm.sizes.parameters import LANGUAGE, VISION


def build_model_chunks(
    config: RunConfig, parallel: Parallel, to_generate: bool = False
) -> list[NVLMD]:
    """This process's parts of the model, on its device, in `train.precision`.

    One part, or `parallel.virtual_pipeline` of them. Weights are left unset: fill them with
    `nvlm.model.parts.initialize.initialize_weights` or from a checkpoint.

    Args:
        to_generate: for answering instead of training; see `choose_attention`.

    Raises:
        ConfigError: `model.layer_implementation` asks for what this machine does not have.
        AssertionError: the parts are not what belongs on this pipeline stage.
    """
    device_platform = platform.current()
    implementation = device_platform.resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )
    virtual = config.parallel.virtual_pipeline
    chunks = [
        NVLMD(config, parallel, implementation, chunk if virtual > 1 else None, to_generate)
        for chunk in range(virtual)
    ]
    for chunk in chunks:
        add_adapters(chunk, config, parallel)
    check_stage(chunks, config, parallel)
    return [chunk.to(device_platform.device()) for chunk in chunks]


def build_model(config: RunConfig, parallel: Parallel, to_generate: bool = False) -> NVLMD:
    """`build_model_chunks` where a process holds one part: without virtual pipeline stages."""
    (model,) = build_model_chunks(config, parallel, to_generate)
    return model


def _layer_parts(config: RunConfig, layer_implementation: str, to_generate: bool) -> LayerParts:
    machine, precision = platform.current().machine(), config.train.precision
    attention = choose_attention(
        machine,
        layer_implementation,
        precision,
        to_generate,
        config.model.sees_both_ways,
        config.train.attention_dropout,
    )
    return layer_parts(layer_implementation, attention.implementation)


class NVLMD(MegatronModule):
    """One part of the model: a pipeline stage, or one of the chunks that a stage is made of.

    The vision encoder and the projector are on the first stage only, in its first chunk. With
    `parallel.vision: tile_parallel` the first chunk of every stage has an encoder, which is whole
    on every process: it is frozen, so that data parallelism keeps nothing for it, and runs before
    the schedule (`visual.encode`), not in `forward`. `vision_model`, `vision_projection` and
    `language_model` are what freeze patterns name.
    """

    def __init__(
        self,
        config: RunConfig,
        parallel: Parallel,
        layer_implementation: str,
        vp_stage: int | None = None,
        to_generate: bool = False,
    ):
        """`vp_stage`: number of the chunk within its stage; None without virtual stages."""
        language_config = language_transformer_config(config, layer_implementation)
        super().__init__(language_config)
        groups = parallel.groups
        self.parallel = parallel
        self.shares_tiles = config.parallel.shares_tiles
        self.sees_both_ways = config.model.sees_both_ways
        self.has_visual_weights = config.model.language.visual_weights != "none"
        self.deepstack = config.model.deepstack
        self.num_levels = config.model.num_levels_beside
        parts = _layer_parts(config, layer_implementation, to_generate)
        self.tp_group = groups.tp
        # What Megatron-core's schedules and gradient finalisation ask a model for.
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = parallel.holds_embedding(vp_stage)
        self.post_process = parallel.holds_output_layer(vp_stage)
        self.vp_stage = vp_stage
        self.share_embeddings_and_output_weights = (
            config.model.language.share_embeddings_and_output_weights
        )

        # Set by whoever wraps this model so; see `_embed`.
        self.overlaps_data_parallelism = False
        # The platform's moment when this rank's gradients were there; who wraps this notes it.
        self.gradients_ready: Any = None
        self.vision_model: nn.Module | None = None
        self.vision_projection: nn.Module | None = None
        if self.pre_process or (self.shares_tiles and vp_stage in (None, 0)):
            encoding = alone(groups) if self.shares_tiles else groups
            self.vision_model = build_encoder(config, layer_implementation, parts, encoding)
            if self.shares_tiles:
                mark_whole(self.vision_model)
        if self.pre_process:
            self.vision_projection = build_connector(
                config.model,
                connector_transformer_config(config, layer_implementation),
                parts,
                groups,
            )
            add_soft_tags(self.vision_projection, config)
            add_alignment(self.vision_projection, config)
        self.visual = Visual(config, parallel, self.vision_model, self.vision_projection)
        self.language_model: GPTModel = build_language_model(
            config.model, language_config, parts, parallel, vp_stage
        )
        self._uneven_rows = uneven_rows(config.model)
        if self._remembers_scaling():
            begin_scaling(self.language_model.decoder)

    @property
    def router_losses(self) -> RouterLosses | None:
        """What the routers of this part have to say of a step; None without experts."""
        return self.language_model.router_losses  # type: ignore[return-value]

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """The shared matrix, or this stage's copy of it; None on stages between them."""
        return self.language_model.shared_embedding_or_output_weight()

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None] | None) -> None:
        """Called by Megatron-core's schedules with the previous stage's hidden states."""
        self.language_model.set_input_tensor(input_tensor)  # type: ignore[arg-type]

    def forward(self, micro_batch: MicroBatch, return_logits: bool = False) -> Tensor:
        """Run this stage on one micro-batch.

        Returns:
            Last stage: loss per token [1, t] in fp32 (meaningless where the label is ignored: mask
            it), or logits [1, t, v] when `return_logits`. Other stages: hidden states for the next.
        """
        labels = None
        if self.post_process and not return_logits:
            # Ignored labels are negative; the loss there is masked by the caller.
            labels = micro_batch.labels.clamp(min=0)
        embedded = self._embed(micro_batch) if self.pre_process else None
        return self._decode(
            micro_batch.tokens,
            embedded,
            sights_of(micro_batch.beside, self.overlaps_data_parallelism),
            position_ids=micro_batch.position_ids,
            labels=labels,
            packed_seq_params=packed_documents(
                micro_batch, self.sees_both_ways, self.has_visual_weights
            ),
            padding_mask=self._padding_mask(micro_batch),
        )

    def _decode(
        self, tokens: Tensor, rows: Rows | None, sights: Tensor | None, **arguments: Any
    ) -> Tensor:
        """What the decoder makes of `rows`, on later stages of those that they have received.

        On all stages but the last with the row beside it behind, for the next. What deepstack adds
        is such a row, and goes no further than this stage.
        """
        row, beside = rows or (None, None)
        if rows is None:
            received: Any = self.language_model.decoder.input_tensor
            num_ranks = self.tp_group.size() if self.config.sequence_parallel else 1
            received, beside = split_rows(received, tokens.shape[1] // num_ranks)
            self.set_input_tensor(received)
        output = self.language_model(
            input_ids=tokens,
            attention_mask=None,
            decoder_input=row,
            extra_block_kwargs={"context": beside, "context_mask": sights},
            **arguments,
        )
        if self.post_process or self.deepstack != "none" or beside is None:
            return output
        return torch.cat([output, beside])

    def _padding_mask(self, micro_batch: MicroBatch) -> Tensor | None:
        """[1, t], with sequence parallelism this rank's part: what routers do not count."""
        mask = None if self.router_losses is None else micro_batch.padding_mask()
        if mask is None or not self.config.sequence_parallel:
            return mask
        return mask.chunk(self.tp_group.size(), dim=1)[self.tp_group.rank()]

    def generate_step(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        context: BaseInferenceContext,
        images: PromptImages | None = None,
        sights: Tensor | None = None,
    ) -> Tensor:
        """Run this stage on the next tokens of questions, which go into `context`'s cache.

        Args:
            tokens, position_ids: [b, t]; of `Prefill` one question's prompt, of `Decode` one token
                of each (`nvlm.model.parts.cache`).
            images: of a prompt, on the first stage; None when it has none.
            sights: see `CrossAttention`; None where nothing is beside the tokens.

        Returns:
            Last stage: logits behind the last tokens [b, 1, vocabulary]; others: hidden states
            [t, b, h], those of the row beside a prompt behind them.
        """
        assert not self.training, "call eval() first"
        assert not self.config.sequence_parallel, "generation runs without sequence parallelism"
        return self._decode(
            tokens,
            self._embed_prompt(tokens, images) if self.pre_process else None,
            sights,
            position_ids=position_ids,
            inference_context=context,
            runtime_gather_output=True,
        )

    def _embed_prompt(self, tokens: Tensor, images: PromptImages | None) -> Rows:
        num_tokens = tokens.shape[1]
        if images is None:
            return self._embed_tokens(tokens), None
        embedded = self._embed_tokens(all_tokens(tokens, images.beside))
        visual = self.visual.project(self.visual.encode(images.tiles))
        embedded = with_mixed_levels(self.vision_projection, embedded, visual, images.gated)
        if self.deepstack != "none":
            return with_additions(embedded, images.positions, visual, images.grids)
        if images.beside is None:
            visual = merge_tokens(visual, len(images.positions) // len(images.tiles))
        if self.num_levels > 1:
            row, levels = with_levels(embedded, images.beside, num_tokens, visual)
            return row, one_after_another(levels)
        places = visual_tokens(images.positions, images.beside, num_tokens, visual)
        return split_rows(splice(embedded, *places), num_tokens)

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        """tokens [b, t] -> [t, b, h]"""

        def embed(tokens: Tensor) -> Tensor:
            return self.language_model.embedding(tokens, None)

        learned = levels_of(self.vision_projection) or soft_tags_of(self.vision_projection)
        return embed(tokens) if learned is None else learned(tokens, embed)

    def cached_layers(self) -> list[LayerShape]:
        """What this stage's layers keep of each token that they have seen."""
        return layer_shapes(self.language_model.decoder.layers, self.config.params_dtype)

    def _embed(self, micro_batch: MicroBatch) -> Rows:
        """Token and image embeddings of the decoder's row [t, 1, h], and of the row beside it.

        With sequence parallelism this rank's part of each.
        """
        # Rotation alone says where a token stands: embeddings have no positions.
        tokens, beside = micro_batch.tokens, micro_batch.beside
        embeddings = self._embed_tokens(all_tokens(tokens, beside))
        by_all = self.overlaps_data_parallelism
        # Without tiles the encoder does not run at all. Its gradient buffers keep the zeros that
        # they start a step with, and no process waits for it: the tensor-parallel group shares one
        # micro-batch, and gradients are reduced over data ranks when the step's last one is done.
        # Where they are reduced earlier, each rank has to come by the same parameters.
        if micro_batch.num_tiles:
            visual = self.visual.embeddings(micro_batch, embeddings)
            embeddings = with_mixed_levels(
                self.vision_projection, embeddings, visual, micro_batch.gated, by_all
            )
            if self.deepstack != "none":
                positions, grids = micro_batch.image_positions, micro_batch.grids
                return self._as_input(*with_additions(embeddings, positions, visual, grids))
            if self.num_levels > 1:
                rows = with_levels(embeddings, beside, tokens.shape[1], visual)
                return self._as_input(*rows)
            places = micro_batch.image_positions, beside, tokens.shape[1]
            embeddings = splice(embeddings, *visual_tokens(*places, visual))
        elif by_all:
            embeddings = with_zero_gradient(embeddings, self.visual.blank_tile(embeddings))
            embeddings = with_mixed_levels(self.vision_projection, embeddings, by_all=True)
        return self._as_input(*split_rows(embeddings, tokens.shape[1]))

    def _as_input(self, row: Tensor, row_beside: Tensor | None) -> Rows:
        """Both as the first layer takes them."""
        if self.config.sequence_parallel:
            row = self._own_part(row)
            row_beside = None if row_beside is None else self._own_part(row_beside)
        if self.num_levels > 1 and row_beside is not None:
            # Without images what nobody sees is the same in all.
            row_beside = one_after_another(row_beside.expand(-1, self.num_levels, -1))
        row = drop_entering(row, self.language_model.config, self.training)
        return recomputable(row, self.language_model.decoder), row_beside

    def _own_part(self, row: Tensor) -> Tensor:
        part = tensor_parallel.scatter_to_sequence_parallel_region(row, group=self.tp_group)
        # As it is, a view, it would keep the whole in memory with the first layer's input.
        return part.clone()

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        """Megatron-core's sharded tensors of this rank; their global shapes depend on no layout.

        They depend on no implementation of the layers either.
        """
        entries = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        entries.update(sharded_adapters(self, prefix))
        entries = stacked_without_holes(entries, self._uneven_rows)
        if self.shares_tiles:
            mark_copies(entries, f"{prefix}{VISION}.", self.parallel)
        return without_extra_state(entries)

    def _remembers_scaling(self) -> bool:
        return bool(self.config.fp8) and self.config.fp8_recipe == "delayed"

    def scaling_tensors(self) -> Iterator[ShardedTensor]:
        """What 8-bit training remembers from step to step, beside `sharded_state_dict`."""
        if self._remembers_scaling():
            copy = self.parallel.tensor_rank
            yield from scaling_tensors(self.language_model.decoder, f"{LANGUAGE}.decoder.", copy)

    def is_everywhere(self, key: str) -> bool:
        """Whether every process of the run holds the sharded tensor of this key, and whole."""
        return self.shares_tiles and key.startswith(f"{VISION}.")

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """As in torch, except that `_extra_state` may be missing (see `keys_but_extra_state`)."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        return keys_but_extra_state(result, strict)
