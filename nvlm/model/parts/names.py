"""Names of modules and parameters as one process holding the whole model would give them.

A pipeline stage, or each chunk of one, counts its decoder layers from zero. What users read and
write (freeze patterns, factors on the learning rate, error messages) counts them over the whole
model, so that it means the same at every process layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn

_EMBEDDING = "language_model.embedding.word_embeddings.weight"


def named_parameters(chunks: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters of a pipeline stage's bare `chunks`.

    The last stage's copy of a shared embedding has the embedding's name.
    """
    for chunk in chunks:
        layers = _layer_names(chunk)
        for name, parameter in chunk.named_parameters():
            is_copy = getattr(parameter, "shared", False)
            yield _EMBEDDING if is_copy else _whole_model_name(name, layers), parameter


def named_modules(chunk: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules inside the bare `chunk`."""
    layers = _layer_names(chunk)
    for name, module in chunk.named_modules():
        if name:
            yield _whole_model_name(name, layers), module


def _layer_names(chunk: nn.Module) -> dict[str, str]:
    """`...layers.0` -> `...layers.40` in a chunk that begins with layer 40."""
    return {
        name: f"{name.rpartition('.')[0]}.{module.layer_number - 1}"
        for name, module in chunk.named_modules()
        if isinstance(module, TransformerLayer)
    }


def _whole_model_name(name: str, layers: dict[str, str]) -> str:
    for here, whole in layers.items():
        if name == here or name.startswith(f"{here}."):
            return whole + name[len(here) :]
    return name
