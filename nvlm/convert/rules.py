"""Conversion as tables: which Hugging Face tensors make one Megatron-core tensor, and back.

A `Rule` speaks of whole (global) tensors under the names that distributed checkpoints use, so it
holds at every process layout: a rank slices what it needs. Which tensors there are, and their
shapes, is in the table of parameters (`nvlm.sizes.parameters`); the rules of each architecture are
in `convert/tables/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvlm.errors import ConvertError
from nvlm.rows import Parameter, Place, Shape


@dataclass(frozen=True)
class Layout:
    """How Hugging Face tensors are laid out in a Megatron-core tensor.

    join: Hugging Face tensors, in order -> the Megatron-core tensor.
    split: the inverse of `join`.
    is_stack: it is nothing but its sources, one below the other; a copy is a stack of one.
    """

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], list[Tensor]]
    is_stack: bool = False


def _only(tensors: Sequence[Tensor]) -> Tensor:
    (tensor,) = tensors
    return tensor


COPY = Layout(_only, lambda tensor: [tensor], is_stack=True)


@dataclass(frozen=True)
class Rule:
    """One Megatron-core tensor and the Hugging Face tensors that it is made of.

    parameter: its row in the table of parameters.
    sources: Hugging Face name -> shape; names of layers contain `{layer}`, those of experts
        `{expert}` too.
    """

    parameter: Parameter
    sources: dict[str, Shape]
    layout: Layout

    @classmethod
    def of(cls, parameter: Parameter, names: Sequence[str], layout: Layout = COPY) -> Rule:
        """Shapes of the sources follow from how the tensor splits."""
        parts = layout.split(torch.empty(parameter.shape, device="meta"))
        shapes = [tuple(part.shape) for part in parts]
        return cls(parameter, dict(zip(names, shapes, strict=True)), layout)

    @property
    def key(self) -> str:
        return self.parameter.key

    @property
    def shape(self) -> Shape:
        """Of the Megatron-core tensor, of one place."""
        return self.parameter.shape

    def names(self, place: Place) -> list[str]:
        return [name.format(**place._asdict()) for name in self.sources]


def rules_of(
    parameters: Sequence[Parameter],
    names: Mapping[str, Sequence[str]],
    layouts: Mapping[str, Layout],
) -> list[Rule]:
    """Rules for all `parameters` of a component, in the order of `names`.

    Args:
        names: key without the component's name -> Hugging Face names. May have more than this
            variant of the component has.
        layouts: such a key -> layout, where the tensor is not a copy.
    """
    rows = {row.key.partition(".")[2]: row for row in parameters}
    assert rows.keys() <= names.keys(), f"no names for {rows.keys() - names.keys()}"
    return [
        Rule.of(rows[key], sources, layouts.get(key, COPY))
        for key, sources in names.items()
        if key in rows
    ]


def to_megatron(
    rule: Rule, place: Place, read: Callable[[str], Tensor], origin: object = "the source"
) -> Tensor:
    """The whole Megatron-core tensor of `rule`, in the data type that `read` returns.

    Raises:
        ConvertError: heads that should be zero are not; `origin` is where the message says so.
    """
    tensor = rule.layout.join([read(name) for name in rule.names(place)])
    assert tensor.shape == rule.shape, (rule.key, tensor.shape, rule.shape)
    check_zero_heads(rule, place, tensor, origin)
    return tensor


def to_hugging_face(rule: Rule, place: Place, tensor: Tensor) -> dict[str, Tensor]:
    """The Hugging Face tensors, by name, that the whole Megatron-core `tensor` consists of.

    Raises:
        ConvertError: heads that should be zero are not.
    """
    assert tensor.shape == rule.shape, (rule.key, tensor.shape, rule.shape)
    check_zero_heads(rule, place, tensor, "the checkpoint")
    parts = rule.layout.split(tensor)
    for part, shape in zip(parts, rule.sources.values(), strict=True):
        assert part.shape == shape, (rule.key, part.shape, shape)
    return dict(zip(rule.names(place), parts, strict=True))


def check_zero_heads(rule: Rule, place: Place, tensor: Tensor, origin: object) -> None:
    """Raise `ConvertError` unless the stored heads beyond the real ones are zero in `tensor`."""
    if rule.parameter.zero_heads is None:
        return
    part = rule.parameter.zero_heads.of(tensor)
    if bool(part.any()):
        raise ConvertError(
            f"{origin}: {', '.join(rule.names(place))}: stored heads beyond "
            f"model.vision.num_attention_heads must be zero, but hold values up to "
            f"{part.abs().max().item():.3g}: the heads are in another order, or were changed by a "
            "program that does not know of zero heads; start from weights of the real heads only"
        )


def expected_tensors(rules: Sequence[Rule]) -> dict[str, Shape]:
    """Every Hugging Face name that `rules` read, with its shape."""
    return {
        name: shape
        for rule in rules
        for place in rule.parameter.places()
        for name, shape in zip(rule.names(place), rule.sources.values(), strict=True)
    }


def num_parameters(rules: Sequence[Rule]) -> int:
    """Parameters in the Megatron-core tensors of `rules`."""
    return sum(rule.parameter.num_parameters for rule in rules)
