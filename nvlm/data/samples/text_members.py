"""A sample's text members as fields: JSON, captions in .txt, and Energon's field maps."""

from __future__ import annotations

import codecs
import json
from typing import Any

from nvlm.data.samples.field_map import Access, FieldMap
from nvlm.data.samples.image_formats import IMAGE_TYPES
from nvlm.data.samples.members import VIDEO_TYPES
from nvlm.data.samples.repairs import note_repair
from nvlm.data.samples.sample import IMAGE_MARK, SampleError

VIDEO_MARK = "<video>"
_MEDIA_TYPES = IMAGE_TYPES | VIDEO_TYPES
# Fields whose values may end in the name of a file.
_TEXTS = {
    "messages", "conversations", "text", "parts", "regions", "choices", "question", "answer",
    "answers", "caption", "system", "id",
}  # fmt: skip
_MAX_NAME_LENGTH = 1000


def read_fields(texts: dict[str, bytes], field_map: FieldMap | None) -> dict[str, Any]:
    """The fields of a sample, by name.

    Args:
        texts: extension -> content of the text members.
        field_map: of a folder prepared for Energon.

    Raises:
        SampleError: a member is not a JSON object or text.
    """
    if field_map is not None:
        return _mapped(field_map, texts)
    value = read_json(texts["json"]) if "json" in texts else {}
    if _is_list_of_turns(value):
        value = {"conversations": value}
    if not isinstance(value, dict):
        raise SampleError(
            "fields", f"the JSON must be an object or a list of turns, found {shown(value)}"
        )
    if "txt" in texts and not value.keys() & _FIELDS_OF_KINDS:
        caption = {"kind": "caption", "caption": _read_text(texts["txt"], "txt")}
        return caption | {name: value[name] for name in _BESIDE_CAPTIONS if name in value}
    return value


# Of a .json that says no more than this beside a .txt.
_BESIDE_CAPTIONS = ("alignment_level",)
# With any of these the .json says what the sample is; without, a .txt does.
_FIELDS_OF_KINDS = {
    "kind", "messages", "conversations", "parts", "regions", "choices", "question", "caption",
    "text",
}  # fmt: skip


def _is_list_of_turns(value: Any) -> bool:
    """Such as LLaVA's `conversations` without the object around it."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("from" in turn or "role" in turn) for turn in value)
    )


def refuse_named_images(value: dict[str, Any]) -> None:
    """Raise `SampleError` if the fields of a sample without images name one, or a video."""
    for name, content in value.items():
        if name in _TEXTS:
            continue
        for text in content if isinstance(content, list) else [content]:
            if not isinstance(text, str) or "://" in text or len(text) > _MAX_NAME_LENGTH:
                continue
            if text.rpartition(".")[2].lower() in _MEDIA_TYPES:
                raise SampleError(
                    "missing_image",
                    f"its field {shown(name)} is {shown(text)}, and there is no image beside it",
                )


def checked_text(value: Any, name: str) -> str:
    """`value`, if it is a text that can be trained on.

    Raises:
        SampleError: it is empty, no text, or has a NUL character or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise SampleError("text", f"{name} is {shown(value)}, expected text")
    if not value.strip():
        raise SampleError("text", f"{name} is empty")
    if "\0" in value:
        raise SampleError("text", f"{name} has a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SampleError("text", f"{name}: {error}") from None
    return value


def text_without_marks(value: Any, name: str) -> str:
    """`value` as by `checked_text`, stripped; marks of images have no place in it.

    A whole number is its own text: answers are often one.
    """
    text = _stripped(value, name)
    for mark in (IMAGE_MARK, VIDEO_MARK):
        if mark in text:
            raise SampleError("image_mark", f"{name} has the mark {mark}")
    return text


def text_with_marks(value: Any, name: str, num_images: int) -> str:
    """The same for a question that may place the sample's images itself, all of them.

    Raises:
        SampleError: it has other marks than one `<image>` for each image.
    """
    if not isinstance(value, str) or IMAGE_MARK not in value:
        return text_without_marks(value, name)
    # A mark that leads is followed by its newline, which is not stripped where there is no more.
    text = value if not value.replace(IMAGE_MARK, "").strip() else _stripped(value, name)
    num_marks = text.count(IMAGE_MARK)
    if num_marks != num_images:
        raise SampleError(
            "image_count", f"{name} has {num_marks} {IMAGE_MARK} marks for {num_images} images"
        )
    if VIDEO_MARK in text:
        raise SampleError("image_mark", f"{name} has the mark {VIDEO_MARK}")
    return text


def _stripped(value: Any, name: str) -> str:
    if type(value) is int:
        note_repair("number_as_text")
        value = str(value)
    if isinstance(value, float):
        raise SampleError("text", f"{name} is {value}: JSON does not keep how it was written")
    text = checked_text(value, name)
    if text != text.strip():
        note_repair("stripped")
        text = text.strip()
    return text


def shown(value: Any) -> str:
    """A value in a message: short."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def printable(text: str) -> str:
    """`text` without characters that would act on a terminal instead of being seen."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def read_json(raw: bytes) -> Any:
    """The value of a JSON member.

    Raises:
        SampleError: it cannot be read, or an object has a name twice.
    """
    _note_byte_order_mark(raw)
    try:
        return json.loads(raw, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise SampleError("json", f"not readable as JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} appears twice in one object")
    return value


def _note_byte_order_mark(raw: bytes) -> None:
    if raw.startswith(codecs.BOM_UTF8):
        note_repair("byte_order_mark")


def _read_text(raw: bytes, name: str) -> str:
    _note_byte_order_mark(raw)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError("text", f"member .{name} is not UTF-8: {error}") from None


def _mapped(field_map: FieldMap, texts: dict[str, bytes]) -> dict[str, Any]:
    """The fields of a folder prepared for Energon, under our names."""
    members = {
        name: read_json(raw) if name.endswith("json") else _read_text(raw, name)
        for name, raw in texts.items()
    }
    found: dict[str, Any] = {"kind": field_map.kind}
    for name, options in field_map.fields.items():
        for access in options:
            try:
                found[name] = _follow(members, access)
                break
            except (KeyError, IndexError, ValueError, TypeError):
                continue
    return found


def _follow(value: Any, access: Access) -> Any:
    for step in access:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value
