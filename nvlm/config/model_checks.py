"""Rules within `model`, and between it and the tensor-parallel size; checks.py has all others."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from nvlm.config.fusion_checks import fusion_problems
from nvlm.config.schema import RunConfig
from nvlm.config.switch_checks import switch_problems


def model_problems(config: RunConfig) -> Iterator[str]:
    """Every rule that the model's sizes break, each in one line."""
    yield from _vision_problems(config)
    yield from fusion_problems(config)
    yield from switch_problems(config)
    yield from _language_problems(config)
    yield from _tensor_problems(config)


def _vision_problems(config: RunConfig) -> Iterator[str]:
    problems = list(config.model.vision.problems())
    yield from problems
    if not problems:
        yield from config.model.connector.problems(config.model.connector_sizes)


def _language_problems(config: RunConfig) -> Iterator[str]:
    language = config.model.language
    heads = "model.language.num_attention_heads"
    if language.kv_channels is None and language.hidden_size % language.num_attention_heads:
        yield not_multiple(config, "model.language.hidden_size", heads)
    elif language.head_dim % 2:
        yield (
            f"a head of model.language is {language.head_dim} wide (kv_channels, or hidden_size / "
            "num_attention_heads): rotary positions need an even number"
        )
    if language.num_attention_heads % language.num_query_groups:
        yield not_multiple(config, heads, "model.language.num_query_groups")
    if language.qk_layernorm and language.qkv_bias:
        yield (
            "model.language.qk_layernorm true and qkv_bias true: no published decoder has both "
            "(Qwen2 has the bias, Qwen3 the norms), and no export could say so; set one to false"
        )
    if language.rope_scaling is not None:
        for problem in language.rope_scaling.problems(language.max_position_embeddings):
            yield f"model.language.rope_scaling: {problem}"


def _tensor_problems(config: RunConfig) -> Iterator[str]:
    """Tensor parallelism splits these sizes evenly."""
    # A process that encodes tiles of its own has the whole vision model.
    of_vision = {} if config.parallel.shares_tiles else config.model.vision.split_sizes()
    of_connector = config.model.connector.split_sizes()
    of_language = ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "vocab_size")
    sizes = {
        **{f"model.vision.{key}": size for key, size in of_vision.items()},
        **{f"model.connector.{key}": size for key, size in of_connector.items()},
        **{f"model.language.{key}": getattr(config.model.language, key) for key in of_language},
    }
    tensor = config.parallel.tensor
    for key, value in sizes.items():
        if value % tensor:
            yield f"parallel.tensor {tensor} does not divide {key} {value}"


def not_multiple(config: RunConfig, key: str, divisor_key: str) -> str:
    """The line that says so of two keys."""
    value, divisor = (attrgetter(name)(config) for name in (key, divisor_key))
    return f"{key} {value} is not a multiple of {divisor_key} {divisor}"
