"""The parameters that a decoder layer has for image tokens alone (`visual_weights`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from nvlm.config.schema import LanguageConfig
from nvlm.rows import Parameter

# Before a name that a layer has for all tokens, or else for text.
VISUAL = "visual_"
_NORMS = ("input_layernorm.weight", "pre_mlp_layernorm.weight")


def is_visual(row: Parameter) -> bool:
    """Whether a row of the decoder is of image tokens alone."""
    return row.key.rpartition(".")[2].startswith(VISUAL)


def of_all_tokens(key: str) -> str:
    """The key of the row that a visual one is beside."""
    return key.replace(f".{VISUAL}", ".")


def with_visual_rows(rows: Iterable[Parameter], language: LanguageConfig) -> Iterator[Parameter]:
    """The rows of a layer, each followed by the one of image tokens where there is one."""
    for row in rows:
        yield row
        shape = _shape(row, language)
        if shape is not None:
            module, _, name = row.key.rpartition(".")
            yield replace(row, key=f"{module}.{VISUAL}{name}", shape=shape)


def _shape(row: Parameter, language: LanguageConfig) -> tuple[int, ...] | None:
    if language.visual_weights == "all" or (
        language.visual_weights == "norms_keys_values" and row.key in _NORMS
    ):
        return row.shape
    if language.visual_weights == "norms_keys_values" and ".linear_qkv." in row.key:
        # A group's rows stand together: its key, its value.
        return (2 * language.num_query_groups * language.head_dim, *row.shape[1:])
    return None
