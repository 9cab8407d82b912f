"""What all the text members of a sample say together: nothing that one of them says is left out."""

from __future__ import annotations

from typing import Any

from nvlm.data.samples.field_map import FieldMap
from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import read_fields, read_json
from nvlm.importers.fields import is_nothing
from nvlm.importers.spellings import MAIN_MEANINGS, MEANINGS, plain


def fields_of_members(
    texts: dict[str, bytes], field_map: FieldMap | None
) -> tuple[dict[str, Any], list[str]]:
    """The fields of a sample, and the names of those that a field map does not name.

    Args:
        texts: extension -> content of the text members.
        field_map: of a folder prepared for Energon.

    Raises:
        SampleError: a member cannot be read, or a caption beside a JSON says something else.
    """
    if field_map is not None:
        return read_fields(texts, field_map), _not_mapped(texts, field_map)
    fields = read_fields({"json": texts["json"]}, None) if "json" in texts else {}
    if "txt" not in texts:
        return fields, []
    text = read_fields({"txt": texts["txt"]}, None)["caption"].strip()
    said = [
        value
        for name, value in fields.items()
        if MEANINGS.get(plain(name)) in MAIN_MEANINGS and not is_nothing(value)
    ]
    if not said:
        return fields | {"caption": text}, []
    values = [item for value in said for item in (value if isinstance(value, list) else [value])]
    if not any(isinstance(value, str) and value.strip() == text for value in values):
        raise SampleError(
            "fields", "its JSON and the text beside it say different things; keep one of them"
        )
    return fields, []


def _not_mapped(texts: dict[str, bytes], field_map: FieldMap) -> list[str]:
    """Of each JSON that is read in part: its other fields, or where its list is not read."""
    unused = []
    accesses = [access for options in field_map.fields.values() for access in options]
    for member, raw in texts.items():
        used = {access[1] for access in accesses if access[0] == member and len(access) > 1}
        if not member.endswith("json") or (member,) in accesses:
            continue
        value = read_json(raw)
        if isinstance(value, dict):
            unused += [f"{member}[{name}]" for name in value if name not in used]
        elif isinstance(value, list):
            left = [i for i in range(len(value)) if not used & {str(i), str(i - len(value))}]
            # One name, however long the list is.
            unused += [f"{member}[{index}...]" for index in left[:1]]
    return unused
