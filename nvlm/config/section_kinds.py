"""Sections of which there are several kinds, told apart by their key `kind`.

Such a section is a union of tagged classes with `kind_or(DEFAULT)`: without the key it is of the
kind that there was first.
"""

from __future__ import annotations

import types
from importlib import import_module
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag
from pydantic.fields import FieldInfo


def kind_or(default: str) -> Discriminator:
    """Tells the kinds of a section apart."""
    return _Kind(
        lambda value: str(_kind_of(value, default)),
        custom_error_type="unknown_kind",
        # `describe_all` says which kinds there are.
        custom_error_message="is of no such kind",
    )


def section_of_kinds(package: str, kinds: dict[str, str]) -> Any:
    """A key's type that holds a section of one of `kinds`, by default of the first one.

    Args:
        kinds: kind, which is the name of a module in `package` -> its section's class in there.
    """
    union: Any = None
    for kind, name in kinds.items():
        section = getattr(import_module(f"{package}.{kind}"), name)
        member = Annotated[section, Tag(kind)]
        union = member if union is None else union | member
    return Annotated[union, kind_or(next(iter(kinds)))]


class _Kind(Discriminator):
    """Marks these unions, and remembers nothing: the default is what `{}` is taken for."""


def kinds_of(field: FieldInfo | None) -> dict[str, type[BaseModel]]:
    """Kind -> its section, of a key that holds one of several; else nothing."""
    if field is None:
        return {}
    hints = [field.annotation, *get_args(field.annotation)]
    if any(isinstance(mark, _Kind) for mark in field.metadata):
        return _tagged(field.annotation)
    if get_origin(field.annotation) is tuple:  # see `item_kinds`
        return {}
    for hint in hints:  # of a key that may also be null
        if get_origin(hint) is Annotated and any(isinstance(m, _Kind) for m in get_args(hint)):
            return _tagged(get_args(hint)[0])
    return {}


def item_kinds(field: FieldInfo | None) -> dict[str, type[BaseModel]]:
    """The same of a key that holds a list of such sections."""
    if field is None or get_origin(field.annotation) is not tuple:
        return {}
    item = get_args(field.annotation)[0]
    marks = get_args(item)[1:] if get_origin(item) is Annotated else ()
    return _tagged(get_args(item)[0]) if any(isinstance(m, _Kind) for m in marks) else {}


def sections_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that a key may hold: one, or one of each kind; none of other keys."""
    if kinds := kinds_of(field):
        return [*kinds.values()]
    if get_origin(field.annotation) is dict:  # whose keys the user names
        return []
    hints = [field.annotation, *get_args(field.annotation)]
    return [hint for hint in hints if isinstance(hint, type) and issubclass(hint, BaseModel)][:1]


def section_for(field: FieldInfo, value: Any) -> type[BaseModel] | None:
    """The section that a key's value is read as; None: the key holds none."""
    if kinds := kinds_of(field):
        return kinds.get(str(_kind_of(value, default_kind(field))))
    return next(iter(sections_of(field)), None)


def default_kind(field: FieldInfo) -> str:
    """Of a key that holds a section of one of several kinds: what it is without `kind`."""
    marks: list[Any] = [*field.metadata]
    for hint in get_args(field.annotation):
        marks += get_args(hint)
    (mark,) = (mark for mark in marks if isinstance(mark, _Kind))
    return mark.discriminator({})  # type: ignore[operator]


def _kind_of(value: Any, default: str) -> Any:
    if isinstance(value, dict):
        return value.get("kind", default)
    return getattr(value, "kind", default)


def _tagged(union: Any) -> dict[str, type[BaseModel]]:
    """Of `Annotated[A, Tag("a")] | Annotated[B, Tag("b")]`, or of one of them."""
    members = get_args(union) if get_origin(union) in (Union, types.UnionType) else [union]
    found = {}
    for member in members:
        section, *marks = get_args(member)
        (tag,) = (mark.tag for mark in marks if isinstance(mark, Tag))
        found[tag] = section
    return found
