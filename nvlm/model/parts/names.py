"""Names of modules and parameters as one process holding the whole model would give them.

A pipeline stage, or each chunk of one, counts its decoder layers from zero, and a process with a
share of a layer's experts counts those from zero. What users read and
write (freeze patterns, factors on the learning rate, error messages) counts them over the whole
model, so that it means the same at every process layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn

_EMBEDDING = "language_model.embedding.word_embeddings.weight"


def named_parameters(chunks: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters of a pipeline stage's bare `chunks`.

    The last stage's copy of a shared embedding has the embedding's name.
    """
    for chunk in chunks:
        layers = _whole_names(chunk)
        for name, parameter in chunk.named_parameters():
            is_copy = getattr(parameter, "shared", False)
            yield _EMBEDDING if is_copy else _whole_model_name(name, layers), parameter


def named_modules(chunk: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules inside the bare `chunk`."""
    layers = _whole_names(chunk)
    for name, module in chunk.named_modules():
        if name:
            yield _whole_model_name(name, layers), module


def is_frozen(module: nn.Module) -> bool:
    """Whether nothing of it trains."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def is_expert(parameter: nn.Parameter) -> bool:
    """Whether it is one of an expert's (`nvlm.model.decoders.experts.mark_experts`)."""
    return not getattr(parameter, "allreduce", True)


def _whole_names(chunk: nn.Module) -> dict[str, str]:
    """`...layers.0` -> `...layers.40` in a chunk that begins with layer 40; its experts likewise.

    A layer's experts come behind it, under its name in this chunk.
    """
    found = {}
    for name, module in chunk.named_modules():
        if isinstance(module, TransformerLayer):
            found[name] = f"{name.rpartition('.')[0]}.{module.layer_number - 1}"
        elif isinstance(module, SequentialMLP):
            first = module.ep_group.rank() * module.num_local_experts
            whole = _whole_model_name(name, found)
            for number in range(module.num_local_experts):
                found[f"{name}.local_experts.{number}"] = f"{whole}.local_experts.{first + number}"
    return found


def _whole_model_name(name: str, whole_names: dict[str, str]) -> str:
    """By the longest beginning of `name` that has another one in the whole model."""
    end = len(name)
    while end > 0:
        if name[:end] in whole_names:
            return whole_names[name[:end]] + name[end:]
        end = name.rfind(".", 0, end)
    return name
