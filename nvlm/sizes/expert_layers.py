"""Which layers of a decoder have experts, and how wide those are."""

from __future__ import annotations

from nvlm.config.schema import LanguageConfig


def expert_layers(language: LanguageConfig) -> tuple[int, ...]:
    """Numbers of the layers with experts."""
    if language.moe is None:
        return ()
    every = language.moe.every_nth_layer
    return tuple(range(every - 1, language.num_layers, every))


def expert_ffn_hidden_size(language: LanguageConfig) -> int:
    """Width inside an expert; without experts, that of the MLP."""
    own = None if language.moe is None else language.moe.ffn_hidden_size
    return own or language.ffn_hidden_size


def active_ffn_hidden_size(language: LanguageConfig) -> float:
    """Channels of MLPs that a token goes through in a layer, in the mean of all layers."""
    if language.moe is None:
        return language.ffn_hidden_size
    num_experts = len(expert_layers(language))
    of_experts = num_experts * language.moe.top_k * expert_ffn_hidden_size(language)
    of_dense = (language.num_layers - num_experts) * language.ffn_hidden_size
    return (of_experts + of_dense) / language.num_layers
