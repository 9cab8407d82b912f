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
