"""How fast the rotary embedding's channels turn, with `model.language.rope_scaling`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
    _yarn_find_correction_range,
    _yarn_linear_ramp_mask,
)

from nvlm.config.rope_scaling import Llama3ScalingConfig, YarnScalingConfig

if TYPE_CHECKING:
    from nvlm.config.schema import LanguageConfig


def scale_rotation(language: LanguageConfig, rotary: Any) -> None:
    """Of Megatron-core's `RotaryEmbedding`, by its own formulas; `GPTModel` passes no settings."""
    scaling = language.rope_scaling
    if scaling is not None:
        _SCALED[scaling.kind](rotary, language, scaling)


def softmax_scale(language: LanguageConfig) -> float | None:
    """What products of queries and keys are multiplied by; None: one over the root of their width.

    YaRN multiplies both by a factor where they are rotated. Its square is here, so that whatever
    rotates (a fused kernel, a cache) has to know nothing of it.
    """
    scaling = language.rope_scaling
    if scaling is None or scaling.attention_scale == 1:
        return None
    return scaling.attention_scale / language.head_dim**0.5


def _llama3(rotary: Any, language: LanguageConfig, scaling: Llama3ScalingConfig) -> None:
    rotary.inv_freq = rotary._apply_scaling(
        rotary.inv_freq,
        scaling.factor,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
        scaling.original_max_position_embeddings,
    )


def _yarn(rotary: Any, language: LanguageConfig, scaling: YarnScalingConfig) -> None:
    first, last = _yarn_find_correction_range(
        scaling.beta_fast,
        scaling.beta_slow,
        language.head_dim,
        language.rope_base,
        scaling.original_max_position_embeddings,
    )
    speeds = rotary.inv_freq
    # 0 where channels are left as they are, 1 where they are stretched whole.
    stretched = _yarn_linear_ramp_mask(first, last, len(speeds), speeds.device)
    rotary.inv_freq = speeds / scaling.factor * stretched + speeds * (1 - stretched)


_SCALED: dict[str, Any] = {"llama3": _llama3, "yarn": _yarn}
