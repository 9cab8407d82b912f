"""A decoder layer whose MLP is a mixture of experts: Megatron-core's router, dispatch and experts.

The rest of the layer is that of a dense one. In each expert there is the dense layer's MLP with our
SwiGLU, one after another (`SequentialMLP`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from torch import nn

from nvlm.config.schema import LanguageConfig
from nvlm.megatron.dispatch_counts import use_numbers
from nvlm.megatron.router_gating import define_missing_product
from nvlm.model.parts.layers import LayerParts
from nvlm.model.parts.router import RouterLosses, router_builder
from nvlm.model.parts.swiglu import swiglu
from nvlm.sizes.expert_layers import expert_layers


def with_experts(
    dense: list[ModuleSpec],
    first: int,
    language: LanguageConfig,
    parts: LayerParts,
    losses: RouterLosses,
) -> list[ModuleSpec]:
    """Layers like the `dense` ones, the first of which has the number `first`; experts in some."""
    kinds = _layer_kinds(language)
    return [
        ModuleSpec(
            module=MixedLayer,
            params={"alike": kinds[number]},
            submodules=replace(_submodules_of(spec), mlp=_experts_spec(parts, losses))
            if number in expert_layers(language)
            else _submodules_of(spec),
        )
        for number, spec in enumerate(dense, start=first)
    ]


def _submodules_of(layer: ModuleSpec) -> TransformerLayerSubmodules:
    assert isinstance(layer.submodules, TransformerLayerSubmodules)
    return layer.submodules


def _experts_spec(parts: LayerParts, losses: RouterLosses) -> ModuleSpec:
    define_missing_product()
    use_numbers()
    activation: Any = swiglu
    experts = ModuleSpec(
        module=SequentialMLP,
        submodules=MLPSubmodules(parts.column_linear, activation, parts.row_linear),
    )
    return ModuleSpec(
        module=MoELayer, submodules=MoESubmodules(experts=experts, router=router_builder(losses))
    )


class MixedLayer(TransformerLayer):
    """A layer of a decoder of which only some layers have experts.

    Checkpoints stack layers. Megatron-core numbers them over the whole decoder, which would leave
    holes where the other kind of layer is: here each kind's MLPs are numbered by themselves.
    """

    def __init__(self, *arguments: Any, alike: tuple[int, ...], **options: Any):
        """`alike`: numbers of all layers of this one's kind."""
        super().__init__(*arguments, **options)
        self._alike = alike

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        entries = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        index = self._alike.index(self.layer_number - 1)
        place = ((0, index, len(self._alike)),)
        return {**entries, **self.mlp.sharded_state_dict(f"{prefix}mlp.", place, metadata)}


def _layer_kinds(language: LanguageConfig) -> list[tuple[int, ...]]:
    """Of each layer, the numbers of those of its kind: with experts, or without."""
    experts = expert_layers(language)
    dense = tuple(number for number in range(language.num_layers) if number not in experts)
    return [experts if number in experts else dense for number in range(language.num_layers)]


def mark_experts(decoder: nn.Module) -> None:
    """Tell Megatron-core's data parallelism and gradient norm that experts are each process's own.

    It takes them for copies on all data-parallel ranks unless there is expert parallelism. But they
    are whole on tensor-parallel ranks, each of which sees other tokens: then those are copies too.
    """
    for layer in decoder.modules():
        if isinstance(layer, MoELayer):
            assert layer.experts is not None
            for parameter in layer.experts.parameters():
                parameter.allreduce = False  # type: ignore[attr-defined]
                # Counted in the norm on every rank that holds a share of it.
                parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
