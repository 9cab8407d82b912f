"""The keys of a `config.json` of decoders with experts: Qwen3-MoE and Qwen2-MoE.

Qwen3-MoE is what a decoder with norms of queries and keys is exported as. All others are exported
as Qwen2-MoE, without its shared expert: that is written with a width of 0, which adds nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nvlm.config.schema import LanguageConfig
from nvlm.convert.hf.config_keys import QWEN2, QWEN3, Keys
from nvlm.sizes.expert_layers import expert_ffn_hidden_size

# Key -> setting, or what follows from several: see `setting_of`.
_SETTINGS = {
    "num_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.top_k",
    "decoder_sparse_step": "moe.every_nth_layer",
    "moe_intermediate_size": "moe.ffn_hidden_size",
}
_FIXED: dict[str, tuple[Any, ...]] = {
    "norm_topk_prob": (True,),
    "mlp_only_layers": ([], None),
}
_NO_EFFECT = {
    "num_local_experts": "another name of num_experts, read where that is missing",
    "output_router_logits": "what is returned beside the logits",
    "router_aux_loss_coef": "of the loss, where transformers trains",
}


def _with_experts(keys: Keys, **fixed: tuple[Any, ...]) -> Keys:
    return replace(
        keys,
        settings={**keys.settings, **_SETTINGS},
        fixed={**keys.fixed, **_FIXED, **fixed},
        no_effect={k: v for k, v in {**keys.no_effect, **_NO_EFFECT}.items() if k not in fixed},
    )


QWEN3_MOE = _with_experts(QWEN3)
_QWEN2_MOE = _with_experts(QWEN2, shared_expert_intermediate_size=(0,))
QWEN2_MOE = replace(_QWEN2_MOE, settings={**_QWEN2_MOE.settings, "qkv_bias": "qkv_bias"})
EXPERT_KEYS = {"Qwen2MoeForCausalLM": QWEN2_MOE, "Qwen3MoeForCausalLM": QWEN3_MOE}


def setting_of(language: LanguageConfig, setting: str) -> Any:
    """The value of a setting of `Keys`, such as `num_layers` or `moe.top_k`."""
    if setting == "moe.ffn_hidden_size":
        return expert_ffn_hidden_size(language)
    section, _, name = setting.rpartition(".")
    return getattr(getattr(language, section) if section else language, name)


def with_num_experts(found: dict[str, Any]) -> dict[str, Any]:
    """The values of a file that may say `num_local_experts`, as transformers 5 writes it."""
    if "num_local_experts" not in found or "num_experts" in found:
        return found
    return {**found, "num_experts": found["num_local_experts"]}


def moe_section(found: dict[str, Any]) -> dict[str, Any]:
    """`model.language.moe` of the values of a file."""
    values = with_num_experts(found)
    return {
        setting.removeprefix("moe."): values[key]
        for key, setting in _SETTINGS.items()
        if key in values
    }
