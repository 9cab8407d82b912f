"""From our configuration to Megatron-core's `TransformerConfig`, one function per component.

Everything that Megatron-core would initialise is left untouched (`_leave_as_is`): weights come from
`nvlm.model.parts.initialize` or from a checkpoint, and neither depends on the process layout.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from nvlm import platform
from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.schema import ModuleRecomputeConfig, RunConfig
from nvlm.dtypes import DTYPES
from nvlm.megatron.interleaved_stages import message_settings
from nvlm.model.parts.rotation import softmax_scale
from nvlm.platform.features import is_on
from nvlm.sizes.expert_layers import expert_ffn_hidden_size
from nvlm.sizes.layout import stage_layers

# Megatron-core's own default is 0.1.
_NO_DROPOUT: dict[str, Any] = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def parameter_dtype(config: RunConfig) -> torch.dtype:
    return DTYPES[config.train.precision].torch


def language_transformer_config(config: RunConfig, layer_implementation: str) -> TransformerConfig:
    """RMSNorm, SwiGLU, grouped queries, biases on q, k and v at most.

    Norms of queries and keys are none of its settings: see `HeadNorm`.
    """
    language = config.model.language
    return TransformerConfig(
        num_layers=language.num_layers,
        hidden_size=language.hidden_size,
        ffn_hidden_size=language.ffn_hidden_size,
        num_attention_heads=language.num_attention_heads,
        num_query_groups=language.num_query_groups,
        kv_channels=language.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=language.norm_epsilon,
        gated_linear_unit=True,
        activation_func=functional.silu,
        # Megatron-core's place for an activation module: ours is there (`parts/swiglu.py`).
        use_te_activation_func=True,
        add_bias_linear=False,
        add_qkv_bias=language.qkv_bias,
        softmax_scale=softmax_scale(language),
        **_experts(config),
        pipeline_model_parallel_size=config.parallel.pipeline,
        pipeline_model_parallel_layout=_uneven_layout(config),
        **message_settings(config.parallel.virtual_pipeline),
        sequence_parallel=config.parallel.sequence,
        context_parallel_size=config.parallel.context,
        # Keys and values travel from rank to rank while others are attended to: any number of
        # heads, and the only way that Transformer Engine has for packed documents besides a2a.
        cp_comm_type="p2p",
        apply_rope_fusion=_is_on("fused_rotation", config, layer_implementation),
        cross_entropy_loss_fusion=_is_on("fused_cross_entropy", config, layer_implementation),
        pipeline_dtype=parameter_dtype(config),
        **_recompute(
            config.train.recompute.language,
            # Of the largest chunk: smaller ones recompute what they have.
            max(map(max, stage_layers(config))) * config.parallel.virtual_pipeline,
            config.parallel.virtual_pipeline,
            layer_implementation,
        ),
        **_fp8(config, layer_implementation),
        hidden_dropout=config.train.hidden_dropout,
        attention_dropout=config.train.attention_dropout,
        **_common(config, layer_implementation),
    )


def vision_transformer_config(
    config: RunConfig, vision: InternViTConfig, layer_implementation: str
) -> TransformerConfig:
    """InternViT over its stored heads, whole on the first pipeline stage or on every process.

    The head dimension comes from the real heads: the stored ones beyond them are zero everywhere
    and exist so that any tensor-parallel size up to 8 divides their number.
    """
    return TransformerConfig(
        **_NO_DROPOUT,
        num_layers=vision.num_layers,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.ffn_hidden_size,
        num_attention_heads=vision.num_stored_attention_heads,
        kv_channels=vision.head_dim,
        normalization=vision.normalization,
        layernorm_epsilon=vision.norm_epsilon,
        activation_func=functional.gelu,
        add_bias_linear=True,
        add_qkv_bias=vision.qkv_bias,
        # Its tokens are not split over the tensor-parallel group: 1025 has few divisors, and the
        # class token is dropped before the language model's sequence begins.
        sequence_parallel=False,
        **_recompute(config.train.recompute.vision, vision.num_layers, 1, layer_implementation),
        **_common(config, layer_implementation, 1 if config.parallel.shares_tiles else None),
    )


def connector_transformer_config(config: RunConfig, layer_implementation: str) -> TransformerConfig:
    """What stands between encoder and decoder: GELU, no biases (paper section 4.5)."""
    language = config.model.language
    return TransformerConfig(
        **_NO_DROPOUT,
        num_layers=1,
        hidden_size=language.hidden_size,
        # Required, and unused: there is no attention here, and widths are the connector's own.
        num_attention_heads=language.num_attention_heads,
        activation_func=functional.gelu,
        add_bias_linear=False,
        sequence_parallel=False,
        **_common(config, layer_implementation),
    )


def _uneven_layout(config: RunConfig) -> list[list[str]] | None:
    """What each chunk holds, in the order of the forward pass; None where all have as many layers.

    Megatron-core counts layers by this list alone: encoder and projector are none of its business.
    """
    layers, parallel = stage_layers(config), config.parallel
    counts = [layers[s][c] for c in range(parallel.virtual_pipeline) for s in range(len(layers))]
    if len(set(counts)) == 1:
        return None
    rows = [["decoder"] * count for count in counts]
    return [["embedding", *rows[0]], *rows[1:-1], [*rows[-1], "loss"]]


def _experts(config: RunConfig) -> dict:
    moe = config.model.language.moe
    if moe is None:
        return {}
    return {
        "num_moe_experts": moe.num_experts,
        "moe_ffn_hidden_size": expert_ffn_hidden_size(config.model.language),
        "moe_router_topk": moe.top_k,
        # A choice should not hang on how 16 bits round.
        "moe_router_dtype": "fp32",
        "moe_aux_loss_coeff": moe.load_balance_loss,
        "moe_z_loss_coeff": moe.z_loss,
        "moe_token_dispatcher_type": "alltoall",
        "expert_model_parallel_size": config.parallel.expert,
        "expert_tensor_parallel_size": 1,
    }


def _recompute(
    wanted: ModuleRecomputeConfig, num_layers: int, num_chunks: int, layer_implementation: str
) -> dict:
    """Settings of activation recomputation; `num_layers` are those of the pipeline stage.

    Megatron-core counts the layers of each model chunk of a stage by themselves.
    """
    if wanted.granularity == "none":
        return {}
    if wanted.granularity == "selective":
        # What a fused core attention keeps is what the next layer keeps as well.
        modules = ["layernorm", "core_attn"] if layer_implementation == "local" else ["layernorm"]
        return {"recompute_granularity": "selective", "recompute_modules": modules}
    return {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": (wanted.num_layers or num_layers) // num_chunks,
    }


def _fp8(config: RunConfig, layer_implementation: str) -> dict:
    if not _is_on("fp8", config, layer_implementation):
        return {}
    wanted = config.train.fp8
    return {
        "fp8": wanted.format,
        "fp8_recipe": wanted.recipe,
        "fp8_margin": wanted.margin,
        "fp8_amax_history_len": wanted.amax_history_len,
        "fp8_amax_compute_algo": wanted.amax_compute_algo,
    }


def _common(config: RunConfig, layer_implementation: str, tensor_size: int | None = None) -> dict:
    """`tensor_size`: None for the layout's."""
    dtype = parameter_dtype(config)
    return {
        "tensor_model_parallel_size": tensor_size or config.parallel.tensor,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "init_method": _leave_as_is,
        "output_layer_init_method": _leave_as_is,
        "embedding_init_method": _leave_as_is,
        # The loss is a mean over the trained tokens of the whole step, not a mean of means.
        "calculate_per_token_loss": True,
        "attention_softmax_in_fp32": True,
        "gradient_accumulation_fusion": _is_on(
            "fused_gradient_accumulation", config, layer_implementation
        ),
        "transformer_impl": layer_implementation,
    }


def _is_on(feature: str, config: RunConfig, layer_implementation: str) -> bool:
    return is_on(feature, config, platform.current().machine(), layer_implementation)


def _leave_as_is(tensor: Tensor) -> Tensor:
    return tensor
