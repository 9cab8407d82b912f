"""The keys of a published `config.json`: what each one means for a conversion.

A key that is in no table here may change what the model computes, so a folder with it is refused
(architectures.py). A test walks the keys of transformers' configuration classes and
of ours against these tables, another changes keys one by one and compares transformers' outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nvlm.config.schema import Fusion


@dataclass(frozen=True)
class Keys:
    """The known keys of one architecture; a key is in one of the tables.

    settings: key -> the setting, within our configuration's section, that it must equal.
    fixed: key -> the values that compute what we compute; an export writes the first.
    rules: keys that a function of their own checks, all together.
    training: key -> the value that does nothing. Of use only while a model is trained; another
        value is reported, and not taken over: `train` says.
    prompts: keys about tiles and prompts, compared with the run's stage; a difference is reported.
    no_effect: key -> why its value changes no output.
    """

    settings: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    rules: frozenset[str] = frozenset()
    training: Mapping[str, Any] = field(default_factory=dict)
    prompts: frozenset[str] = frozenset()
    no_effect: Mapping[str, str] = field(default_factory=dict)

    def compared(self) -> list[str]:
        """Keys whose values are compared, or refused."""
        return [*self.settings, *self.fixed, *self.rules]

    def is_known(self, key: str) -> bool:
        tables = (self.settings, self.fixed, self.rules, self.training, self.prompts)
        return key.startswith("_") or key in self.no_effect or any(key in keys for keys in tables)


def _reasons(table: dict[str, str]) -> dict[str, str]:
    """{reason: "key key"} -> {key: reason}"""
    return {key: reason for reason, keys in table.items() for key in keys.split()}


# Of transformers' base class, in its releases from 4.37 to 5.
_COMMON_FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "per_layer_config": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
_COMMON_NO_EFFECT = _reasons(
    {
        "the folder's architecture is checked by itself": "architectures model_type",
        "code of the folder is never run": "auto_map custom_pipelines",
        "who wrote the file": "transformers_version unsloth_version unsloth_fixed",
        "each tensor says its own type": "dtype torch_dtype use_bfloat16",
        "what a call returns or keeps": (
            "output_attentions output_hidden_states output_scores return_dict use_return_dict "
            "return_dict_in_generate use_cache torchscript tf_legacy_loss tie_last_hidden_states"
        ),
        "the same sums by another program or in parts": (
            "attn_implementation chunk_size_feed_forward gradient_checkpointing pretraining_tp "
            "use_flash_attn use_flash_attention"
        ),
        "initial values; the weights are in the folder": "initializer_range initializer_factor",
        "of classifiers": (
            "finetuning_task id2label label2id num_labels prefix problem_type task_specific_params"
        ),
        "token ids and lengths are model.tokenizer's and the stage's": (
            "bos_token_id decoder_start_token_id eos_token_id max_sequence_length "
            "model_max_length pad_token_id sep_token_id tokenizer_class "
            "tokenizer_model_max_length tokenizer_padding_side"
        ),
        "how answers are drawn; the command that generates says": (
            "assistant_confidence_threshold assistant_lookbehind bad_words_ids "
            "begin_suppress_tokens diversity_penalty do_sample early_stopping "
            "encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff "
            "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id "
            "length_penalty max_length max_new_tokens min_length no_repeat_ngram_size "
            "num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams "
            "num_return_sequences remove_invalid_values repetition_penalty suppress_tokens "
            "target_lookbehind temperature top_k top_p typical_p"
        ),
        "an encoder and a decoder in one model; there is none": "is_decoder tie_encoder_decoder",
    }
)

# Of an NVLM-D; what they say when they are missing is None or this.
CONNECTOR_KEYS: dict[str, Any] = {
    "connector": None,
    "downsample_ratio": 0.5,
    "projector_hidden_size": None,
    "projector_layer_norm_eps": None,
}
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")

_LANGUAGE_SETTINGS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_epsilon",
}
_LANGUAGE_RULES = frozenset(
    {*ROPE_KEYS, "tie_word_embeddings", "layer_types", "max_position_embeddings"}
)
_LANGUAGE_FIXED = {
    **_COMMON_FIXED,
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "partial_rotary_factor": (1.0, None),
    "use_mrope": (False, None),
    "use_qk_norm": (False, None),
    "use_sliding_window": (False, None),
}

QWEN2 = Keys(
    settings=_LANGUAGE_SETTINGS,
    fixed=_LANGUAGE_FIXED,
    rules=_LANGUAGE_RULES,
    training={"attention_dropout": 0.0},
    no_effect={
        **_COMMON_NO_EFFECT,
        **_reasons(
            {
                "only with use_sliding_window": "sliding_window max_window_layers",
                "Qwen2 has biases on q, k and v and nowhere else": "attention_bias mlp_bias",
            }
        ),
    },
)
LLAMA = Keys(
    settings=_LANGUAGE_SETTINGS,
    fixed={
        **_LANGUAGE_FIXED,
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "sliding_window": (None,),
    },
    rules=_LANGUAGE_RULES,
    training={"attention_dropout": 0.0},
    no_effect={
        **_COMMON_NO_EFFECT,
        **_reasons({"only with use_sliding_window": "max_window_layers"}),
    },
)
QWEN3 = Keys(
    settings=_LANGUAGE_SETTINGS,
    fixed={**_LANGUAGE_FIXED, "attention_bias": (False, None), "use_qk_norm": (True, None)},
    rules=_LANGUAGE_RULES,
    training={"attention_dropout": 0.0},
    no_effect={
        **_COMMON_NO_EFFECT,
        **_reasons(
            {
                "only with use_sliding_window": "sliding_window max_window_layers",
                "Qwen3 has no biases in its MLP": "mlp_bias",
            }
        ),
    },
)
# Computes what a Llama computes, unless it has a sliding window.
MISTRAL = Keys(
    settings=_LANGUAGE_SETTINGS,
    fixed={**_LANGUAGE_FIXED, "sliding_window": (None,)},
    rules=_LANGUAGE_RULES,
    training={"attention_dropout": 0.0},
    no_effect={
        **_COMMON_NO_EFFECT,
        **_reasons(
            {
                "only with use_sliding_window": "max_window_layers",
                "Mistral has no biases": "attention_bias mlp_bias",
            }
        ),
    },
)
INTERN_VIT = Keys(
    settings={
        "hidden_size": "hidden_size",
        "intermediate_size": "ffn_hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_attention_heads",
        "image_size": "image_size",
        "patch_size": "patch_size",
        "layer_norm_eps": "norm_epsilon",
        "norm_type": "normalization",
        "qk_normalization": "qk_layernorm",
        "qkv_bias": "qkv_bias",
    },
    fixed={**_COMMON_FIXED, "hidden_act": ("gelu",), "num_channels": (3,)},
    rules=frozenset({"feature_layers"}),
    training={"attention_dropout": 0.0, "dropout": 0.0, "drop_path_rate": 0.0},
    no_effect={
        **_COMMON_NO_EFFECT,
        **_reasons(
            {
                "the tensors' shapes say how many there are": "num_stored_attention_heads",
                "there are no word embeddings": "tie_word_embeddings",
            }
        ),
    },
)
# Encoders in plain torch, as our exports have them.
PLAIN_VISION = Keys(
    settings={},
    fixed=_COMMON_FIXED,
    rules=frozenset({"encoder", "module", "image_size", "num_patches", "hidden_size"}),
    no_effect={**_COMMON_NO_EFFECT, "tie_word_embeddings": "there are no word embeddings"},
)
# Several of them, and of InternViTs.
SIDE_BY_SIDE = replace(
    PLAIN_VISION, rules=frozenset({"encoders", "image_size", "num_patches", "hidden_size"})
)
# Architecture of an export -> `model.fusion`.
FUSIONS: dict[str, Fusion] = {
    "NVLM_D": "decoder_only",
    "NVLM_X": "cross_attention",
    "NVLM_H": "hybrid",
}
NVLM_D = Keys(
    settings={
        "force_image_size": "vision.image_size",
    },
    fixed={
        **_COMMON_FIXED,
        "ps_version": ("v2",),
        "select_layer": (-1,),
        "image_fold": (None,),
        "pad2square": (False, None),
        "use_backbone_lora": (0, None),
        "use_llm_lora": (0, None),
    },
    rules=frozenset({"vision_config", "llm_config", *CONNECTOR_KEYS}),
    prompts=frozenset(
        {
            "chat_format",
            "dynamic_image_size",
            "image_boundary",
            "image_token",
            "max_dynamic_patch",
            "min_dynamic_patch",
            "system_message",
            "template",
            "tile_tags",
            "use_thumbnail",
        }
    ),
    no_effect={
        **_COMMON_NO_EFFECT,
        **_reasons(
            {
                "llm_config says it": "tie_word_embeddings",
                "tokens of images are overwritten by embeddings": "img_context_token_id",
            }
        ),
    },
)
# NVLM-X and NVLM-H.
NVLM_FUSED = replace(
    NVLM_D,
    settings={
        **NVLM_D.settings,
        "cross_attention_interval": "cross_attention.layer_interval",
        "cross_attention_num_key_value_heads": "num_cross_attention_groups",
    },
)
