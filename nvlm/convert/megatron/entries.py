"""The tensors of rules in the order of files, and which of them need no rearranging."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nvlm.convert.rules import Rule
from nvlm.rows import Place

# A rule and which of its tensors is meant.
Entry = tuple[Rule, Place]


def in_file_order(rules: Sequence[Rule]) -> list[Entry]:
    """Every tensor, component by component, the tensors of a layer together.

    Hugging Face files are cut by layers, so that this reads and writes them from front to back.
    """

    def position(entry: Entry) -> tuple[str, int]:
        rule, place = entry
        return rule.parameter.component, -1 if place.layer is None else place.layer

    entries = ((rule, place) for rule in rules for place in rule.parameter.places())
    return sorted(entries, key=position)


def is_stack(rule: Rule) -> bool:
    """Whether the Megatron-core tensor is nothing but its sources, one on top of the other.

    Then some rows can be converted without the rest: a copy is a stack of one.
    """
    return rule.layout.is_stack


def source_rows(rule: Rule) -> Iterator[tuple[str, int, int]]:
    """Of a stack: each source's name and the rows (first, one past the last) that it becomes."""
    assert is_stack(rule), rule.key
    first = 0
    for name, shape in rule.sources.items():
        yield name, first, first + shape[0]
        first += shape[0]
