"""The decoder: Megatron-core's GPTModel with layers of the Llama and Qwen kind."""

from __future__ import annotations

from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from nvlm.config.schema import LanguageConfig, ModelConfig
from nvlm.megatron.packed_rotary import use_rows_from_device
from nvlm.megatron.residual_gradients import follow_gradient_mode
from nvlm.model.decoders.cross_attention import with_cross_attention
from nvlm.model.decoders.deepstack import with_deepstack
from nvlm.model.decoders.experts import mark_experts, with_experts
from nvlm.model.decoders.visual_weights import with_visual_weights
from nvlm.model.parts.attention import RotatedSelfAttention
from nvlm.model.parts.dropout import leave_embedding_whole
from nvlm.model.parts.layers import LayerParts, mlp_spec
from nvlm.model.parts.norms import HeadNorm, RMSNorm
from nvlm.model.parts.rotation import scale_rotation
from nvlm.model.parts.router import RouterLosses
from nvlm.model.parts.visual_weights import share_kinds
from nvlm.parallel.groups import Parallel


def build_language_model(
    model_config: ModelConfig,
    config: TransformerConfig,
    parts: LayerParts,
    parallel: Parallel,
    vp_stage: int | None = None,
) -> GPTModel:
    """One chunk's layers; embeddings in the first of all chunks, output layer in the last.

    Args:
        vp_stage: number of the chunk within its pipeline stage; None without virtual stages.
    """
    use_rows_from_device()
    language = model_config.language
    num_layers = get_num_layers_to_build(config, vp_stage, parallel.pipeline_rank)
    first = get_transformer_layer_offset(config, vp_stage, parallel.pipeline_rank)
    specs = [_layer_spec(language, parts, config, parallel)] * num_layers
    router_losses = RouterLosses() if language.moe else None
    if router_losses is not None:
        specs = with_experts(specs, first, language, parts, router_losses)
    specs = with_cross_attention(specs, first, model_config, parts)
    specs = with_visual_weights(specs, language)
    specs = with_deepstack(specs, first, model_config)
    layers = TransformerBlockSubmodules(
        layer_specs=specs,
        layer_norm=RMSNorm,  # type: ignore[arg-type]
    )
    model = GPTModel(
        config,
        layers,  # type: ignore[arg-type]
        vocab_size=language.vocab_size,
        max_sequence_length=language.max_position_embeddings,
        pre_process=parallel.holds_embedding(vp_stage),
        post_process=parallel.holds_output_layer(vp_stage),
        parallel_output=True,
        share_embeddings_and_output_weights=language.share_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_base=language.rope_base,  # type: ignore[arg-type]
        # Image embeddings are spliced in over the whole sequence, before it is split.
        scatter_embedding_sequence_parallel=False,
        pg_collection=parallel.groups,
        vp_stage=vp_stage,
    )
    scale_rotation(language, model.rotary_pos_emb)
    follow_gradient_mode(model.decoder)
    mark_experts(model.decoder)
    share_kinds(model.decoder, parallel.groups.tp)
    leave_embedding_whole(model)
    model.router_losses = router_losses  # type: ignore[assignment]
    return model


def _layer_spec(
    language: LanguageConfig, parts: LayerParts, config: TransformerConfig, parallel: Parallel
) -> ModuleSpec:
    bias_dropout_add: Any = get_bias_dropout_add
    head_norm: Any = IdentityOp
    if language.qk_layernorm:
        head_norm = ModuleSpec(module=HeadNorm, params={"tensor_group": parallel.groups.tp})
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=RotatedSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=parts.column_linear,
                    core_attention=parts.core_attention,
                    linear_proj=parts.row_linear,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            self_attn_bda=bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp_spec(parts, config),
            mlp_bda=bias_dropout_add,
        ),
    )
