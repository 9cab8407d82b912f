"""Which members hold a sample's fields, where a source says so itself (shards/energon.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

# A member's extension and the keys to follow inside it, such as ("json", "answers", "0").
Access = tuple[str, ...]


@dataclass(frozen=True)
class FieldMap:
    """Which members hold the fields of a source's samples."""

    kind: str
    image: list[Access]  # the first that is there; empty: no image
    fields: dict[str, list[Access]] = field(default_factory=dict)  # our field -> where it may be

    @property
    def image_members(self) -> list[str]:
        return [access[0] for access in self.image]

    @property
    def text_members(self) -> list[str]:
        return sorted({access[0] for options in self.fields.values() for access in options})
