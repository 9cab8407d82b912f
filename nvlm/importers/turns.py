"""Conversations in the shapes that data come in, as messages with our marks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nvlm.data.samples.sample import IMAGE_MARK, SampleError
from nvlm.data.samples.text_members import VIDEO_MARK, shown
from nvlm.importers.fields import Fields, is_nothing
from nvlm.importers.image_files import FileFolder
from nvlm.importers.marks import Name, Number, read_marks
from nvlm.importers.pictures import Picture, read_pictures
from nvlm.importers.spellings import (
    CONTENT_FIELDS,
    IMAGES,
    PAIRS,
    ROLE_FIELDS,
    ROLES,
    TURN_TRAINED,
    VIDEOS,
    plain,
)
from nvlm.importers.tools import read_json, write_calls, write_result
from nvlm.importers.unread import refuse_named_files

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_VIDEO_PARTS = ("video", "video_url")
_PLAIN_TURNS = (("from", "value"), ("role", "content"))


@dataclass(frozen=True)
class Index:
    """The image of this place in the sample's list, from 0."""

    index: int


# The image that a mark stands for. None: the next of the sample's.
Place = Picture | Index | Number | None


@dataclass
class Conversation:
    """Turns as they are stored, and what their marks stand for, in order."""

    folder: FileFolder | None  # of the files that turns name
    messages: list[dict[str, Any]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    videos: list[Picture] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # names of fields

    def add_text(self, text: str, where: str) -> str:
        """`text` with our marks; what they stand for is noted."""
        refuse_named_files(text, where, self.folder)
        text, images = read_marks(text, where)
        for image in images:
            if isinstance(image, Name):
                self.places += read_pictures(image.name, where, self.folder, "image", self.unused)
            else:
                self.places.append(image)
        return text


def as_turns(value: Any) -> Any:
    """The list of turns of a field that has it as JSON, or as lists of roles and of contents."""
    value = read_json(value)
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        columns = list(value.values())
        if len({len(column) for column in columns}) == 1:
            rows = zip(*columns, strict=True)
            return [dict(zip(value, row, strict=True)) for row in rows]
    return value


def read_turns(turns: list[Any], name: str, folder: FileFolder | None) -> Conversation:
    """The conversation of a list of turns.

    Args:
        name: of the field, for messages and for what is not used.

    Raises:
        SampleError: a turn is none, or says what cannot be taken over.
    """
    conversation = Conversation(folder)
    pending: list[str] = []  # ids of calls without their result
    in_results = False
    for position, turn in enumerate(turns):
        where = f"turn {position}"
        if not isinstance(turn, dict):
            raise SampleError("messages", f"{where} is {shown(turn)}, expected an object")
        if tuple(turn) in _PLAIN_TURNS and _is_plain(*turn.values()):
            role, content = turn.values()
            _add(conversation, ROLES[role.lower()], conversation.add_text(content, where))
            in_results = False
            continue
        fields = Fields(turn, f"{name}.")
        fields.refuse()
        if pair := _pair(fields):
            for role, content in zip(("user", "assistant"), pair, strict=True):
                _add(conversation, role, _text(conversation, content, where, name))
            in_results = False
        else:
            kind, message = _read_turn(conversation, fields, turn, where, name, pending)
            if kind == "tool" and in_results:
                conversation.messages[-1]["content"] += f"\n{message['content']}"
            else:
                conversation.messages.append(message)
            in_results = kind == "tool"
        conversation.unused += fields.leave(where)
    return conversation


def _pair(fields: Fields) -> list[Any] | None:
    if fields.found(ROLE_FIELDS):
        return None
    names = [fields.found(options) for options in PAIRS]
    if not all(len(found) == 1 for found in names):
        return None
    return [fields.take(found[0]) for found in names]


def _add(conversation: Conversation, role: str, content: Any) -> None:
    conversation.messages.append({"role": role, "content": content})


def _is_plain(role: Any, content: Any) -> bool:
    """Nearly all turns are: nothing of them needs a closer look."""
    if not isinstance(role, str) or not isinstance(content, str) or not content:
        return False
    return ROLES.get(role.lower()) in ("system", "user", "assistant")


def _read_turn(
    conversation: Conversation,
    fields: Fields,
    turn: dict[Any, Any],
    where: str,
    name: str,
    pending: list[str],
) -> tuple[str, dict[str, Any]]:
    """(what kind of turn it is, the message)."""
    role = fields.take_one(ROLE_FIELDS)[1]
    kind = ROLES.get(plain(role).strip(), "") if isinstance(role, str) else ""
    content = fields.take_one(CONTENT_FIELDS)[1]
    if content is None:  # empty: kept, for the message that says so
        content = next((turn[n] for n in turn if plain(n) in CONTENT_FIELDS), None)
    start = len(conversation.places)
    text = content if kind == "call" else _text(conversation, content, where, name)
    text = _with_own_images(conversation, fields, text, where, start)
    if kind == "call":
        text, ids = write_calls(content, f"{name}.{role}", conversation.unused)
        pending[:] = ids
        kind = "assistant"
    elif calls := _calls(fields):
        field_name, value = calls
        called, ids = write_calls(value, f"{name}.{field_name}", conversation.unused)
        pending[:] = ids
        if kind != "assistant":
            raise SampleError("tools", f"{where} has {field_name}, but is not the assistant's")
        text = f"{text}\n{called}" if text else called
    if kind == "tool":
        _check_order(fields, pending, where)
        if isinstance(text, str):
            text = write_result(text)
    stored = {"tool": "user", "": role}.get(kind, kind)
    message = {"role": stored, "content": text}
    if _is_untrained(fields, stored, where):
        message["weight"] = 0
    return kind, message


def _calls(fields: Fields) -> tuple[str, Any] | None:
    found = fields.found(("tool_calls", "function_call"))
    return (found[0], fields.take(found[0])) if found else None


def _check_order(fields: Fields, pending: list[str], where: str) -> None:
    """Results follow in the order of their calls: the text form has no ids."""
    if "tool_call_id" not in fields:
        return
    found = str(fields.take("tool_call_id"))
    if found not in pending:
        return
    if pending[0] != found:
        raise SampleError(
            "tools", f"{where} is the result of call {found}, expected that of {pending[0]}: "
            "results come in the order of their calls"
        )  # fmt: skip
    pending.pop(0)


def _is_untrained(fields: Fields, role: Any, where: str) -> bool:
    found: dict[str, bool] = {}
    for name in fields.found(TURN_TRAINED):
        value, full_name = fields.look(name), fields.name(name)
        fields.take(name)
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise SampleError("fields", f"{where} has {full_name} {shown(value)}, expected 0 or 1")
        if value and role != "assistant":
            raise SampleError(
                "fields", f"{where} ({shown(role)}) has {full_name} {shown(value)}, but only the "
                "assistant's turns are trained"
            )  # fmt: skip
        found[full_name] = bool(value)
    if len(set(found.values())) > 1:
        raise SampleError("fields", f"{where} has {' and '.join(found)}, which do not agree")
    return False in found.values() and role == "assistant"


def _with_own_images(
    conversation: Conversation, fields: Fields, text: Any, where: str, start: int
) -> Any:
    """Images and videos in fields of the turn itself stand at its marks, or before its text."""
    pictures: list[Picture] = []
    for name in fields.found(IMAGES):
        place = fields.name(name)
        value = fields.take(name)
        pictures += read_pictures(value, place, conversation.folder, "image", conversation.unused)
    if pictures:
        own = conversation.places[start:]
        if not own and isinstance(text, str):
            text = f"{IMAGE_MARK}\n" * len(pictures) + text
        elif len(own) != len(pictures) or any(place is not None for place in own):
            raise SampleError(
                "image_count", f"{where} has {len(pictures)} images and {len(own)} marks for them"
            )
        conversation.places[start:] = pictures
    for name in fields.found(VIDEOS):
        place = fields.name(name)
        conversation.videos += read_pictures(
            fields.take(name), place, conversation.folder, "video", conversation.unused
        )
        if isinstance(text, str) and VIDEO_MARK not in text:
            text = f"{VIDEO_MARK}\n{text}"
    return text


def _text(conversation: Conversation, content: Any, where: str, name: str) -> Any:
    """Content as one text with our marks; what is no content is left for the message about it."""
    if isinstance(content, str):
        return conversation.add_text(content, where)
    if isinstance(content, dict) and "type" in content:
        content = [content]
    if not isinstance(content, list):
        return content
    return "".join(_part(conversation, part, where, name) for part in content)


def _part(conversation: Conversation, part: Any, where: str, name: str) -> str:
    if isinstance(part, str):
        return conversation.add_text(part, where)
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        kind = next((k for k in ("text", "image", "video") if _has_only(part, k)), None)
    if kind not in (*_TEXT_PARTS, *_IMAGE_PARTS, *_VIDEO_PARTS):
        raise SampleError("messages", f"{where} has the part {shown(part)}")
    fields = Fields(part, f"{name}.content.")
    if "type" in fields:
        fields.take("type")
    if kind in _TEXT_PARTS:
        text = fields.take("text") if "text" in fields else ""
        if not isinstance(text, str):
            raise SampleError("messages", f"{where} has the part {shown(part)}")
        text = conversation.add_text(text, where)
    elif kind in _IMAGE_PARTS:
        conversation.places.append(_image_of_part(conversation, fields, where))
        text = f"{IMAGE_MARK}\n"
    else:
        conversation.videos += _media_of_part(conversation, fields, "video")
        text = f"{VIDEO_MARK}\n"
    fields.refuse()
    if asked := fields.found(("video_start", "video_end", "start", "end")):
        raise SampleError(
            "video", f"{where} asks for a part of a video by {asked[0]}; cut the file itself"
        )
    conversation.unused += fields.leave(f"a part of {where}")
    return text


def _has_only(part: Any, kind: str) -> bool:
    return isinstance(part, dict) and [k for k in part if not is_nothing(part[k])] == [kind]


def _image_of_part(conversation: Conversation, fields: Fields, where: str) -> Place:
    pictures = _media_of_part(conversation, fields, "image")
    if len(pictures) > 1:
        raise SampleError("image_count", f"{where} has a part with {len(pictures)} images")
    index = fields.take("index") if "index" in fields else None
    if pictures:
        return pictures[0]
    if index is None:
        return None
    if not isinstance(index, int) or isinstance(index, bool):
        raise SampleError("messages", f"{where} has a part with index {shown(index)}")
    return Index(index)


def _media_of_part(conversation: Conversation, fields: Fields, what: str) -> list[Picture]:
    names = (what, f"{what}_url", "url", "path", "source", "data", "bytes", "base64", *IMAGES)
    found = fields.found(dict.fromkeys(names))
    pictures: list[Picture] = []
    for name in found[:1]:
        place = fields.name(name)
        pictures = read_pictures(
            fields.take(name), place, conversation.folder, what, conversation.unused
        )
    if len(found) > 1:
        raise SampleError(
            "fields", f"a part has {fields.place}{found[0]} and {found[1]}; keep one of them"
        )
    return pictures
