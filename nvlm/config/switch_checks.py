"""Rules of the decoder's switches: what does not go with each of them (docs/switches.md)."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.schema import RunConfig


def switch_problems(config: RunConfig) -> Iterator[str]:
    """Every rule that is broken, each in one line."""
    yield from _attention_problems(config)


def _attention_problems(config: RunConfig) -> Iterator[str]:
    model, key = config.model, "model.visual_attention bidirectional"
    if not model.sees_both_ways:
        return
    if model.fusion == "cross_attention":
        yield (
            f"{key} does not go with model.fusion cross_attention: no image token is in the "
            "decoder's sequence; use causal"
        )
    if config.parallel.context > 1:
        yield (
            f"parallel.context {config.parallel.context} does not go with {key}: its processes "
            "share causal rows; use parallel.context 1"
        )
