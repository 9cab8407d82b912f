"""A sample of a source, in any of the shapes that data comes in, as the sample to store.

Every field is used, or makes the sample be refused by a message that names it, or is listed. A
field that decides what is trained is never only listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvlm.data.samples.kinds import KINDS
from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.importers.fields import Fields, is_nothing
from nvlm.importers.image_files import FileFolder
from nvlm.importers.image_order import add_marks, in_order_of_marks, one_video
from nvlm.importers.marks import refuse_marks
from nvlm.importers.media import Media, take_media
from nvlm.importers.options import option_columns
from nvlm.importers.pictures import Picture, read_pictures
from nvlm.importers.questions import Found, take_answer, take_history, take_question
from nvlm.importers.spellings import ID_FIELDS, SPELLINGS
from nvlm.importers.tools import describe_tools
from nvlm.importers.turns import Conversation, Index, Place, as_turns, read_turns
from nvlm.importers.unread import check_unread, refuse_named_files

_LEVELS = ("alignment_level", "similarity")
_REGION_NAMES = {"text", "box", "quad"}


@dataclass
class Normalised:
    """What is stored of a sample, and what is not."""

    content: dict[str, Any]  # as kinds.py has it
    pictures: list[Picture]  # in the order of the marks
    video: Picture | None
    unused: list[str]  # names of fields
    weighted_by: str = ""  # name of the field that multiplies the sample's loss


def normalise(
    value: dict[str, Any],
    given: list[Picture],
    video: Picture | None = None,
    folder: FileFolder | None = None,
) -> Normalised:
    """The sample to store.

    Of conversations without a mark for their images, the first user turn gets the marks, as LLaVA
    does.

    Args:
        given: images that lie beside the text, such as members of a tar.
        video: one that lies beside the text.
        folder: of the files that the text names; None: it cannot name any.

    Raises:
        SampleError: none of the known fields is there, or one that may not be left out is of no
            use.
    """
    fields = Fields(value)
    fields.refuse()
    media = take_media(fields, given, video, folder)
    weighted_by = next(iter(fields.found(SPELLINGS["weight in the loss"])), "")
    common = _take_common(fields)
    found = _take_content(fields, media, folder, "kind" in common)
    if found is None:
        raise SampleError(
            "fields", f"no conversation, caption, question or text; it has {fields.describe()}"
        )
    main, content, conversation = found
    if columns := option_columns(fields):
        raise SampleError(
            "fields",
            f"options in {', '.join(columns)} beside {main}; write them into it",
        )
    if conversation is None:
        system = fields.take_one(SPELLINGS["system text"])[1]
        if system is not None:
            common["system"] = system
        _refuse_marks(content, folder)
        places: list[Place] = []
    else:
        _add_system(fields, conversation, main)
        places = conversation.places
    pictures = in_order_of_marks(media, places)
    clip = one_video(media, conversation)
    if clip is None:
        check_unread(fields, folder, pictures)
    unused = media.unused + (conversation.unused if conversation else []) + fields.leave(main)
    if conversation is not None:
        if pictures and clip is not None:
            raise SampleError("video", "a video beside images; expected one alone")
        add_marks(conversation.messages, len(pictures), clip is not None)
        content = {"messages": conversation.messages}
    return Normalised(common | content, pictures, clip, unused, weighted_by)


def _take_common(fields: Fields) -> dict[str, Any]:
    """What any kind of sample may have, under our names."""
    result: dict[str, Any] = {}
    if "kind" in fields and fields.look("kind") in KINDS:
        result["kind"] = fields.take("kind")
    if "task" in fields:
        if not isinstance(fields.look("task"), str):
            raise SampleError("fields", f"task is {shown(fields.look('task'))}, expected text")
        result["task"] = fields.take("task")
    for name in fields.found(ID_FIELDS)[:1]:
        sample_id = fields.take(name)  # the key is made of it
        if name == "id":
            result["id"] = sample_id if isinstance(sample_id, int) else str(sample_id)
    weight = _take_weight(fields)
    if weight != 1:
        result["loss_weight"] = weight
    # AlignGPT's files say the level as `similarity`; in others that is a score, and no level.
    level = next((n for n in _LEVELS if type(fields.look(n)) is int), "")
    if level:
        result["alignment_level"] = fields.take(level)
    for name in fields.found(SPELLINGS["whether it is trained"]):
        said = fields.take(name)
        if not isinstance(said, (int, float)) or said not in (0, 1):
            raise SampleError(
                "fields", f"{name} is {shown(said)}, expected 0 or 1; masks of turns stand in them"
            )
        if not said:
            raise SampleError("untrained", f"{name} is {shown(said)}, so nothing is trained")
    return result


def _take_weight(fields: Fields) -> float:
    name, weight = fields.take_one(SPELLINGS["weight in the loss"])
    if not name:
        return 1
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not 0 <= weight <= 1_000_000:
        raise SampleError(
            "fields",
            f"{name} is {shown(weight)}, expected a factor on the loss from 0 to 1,000,000; remove "
            "the field if it is none",
        )
    if weight == 0:
        raise SampleError("untrained", f"{name} is 0, so nothing is trained")
    return weight


def _take_content(
    fields: Fields, media: Media, folder: FileFolder | None, has_kind: bool
) -> Found | None:
    name, value = fields.take_one(SPELLINGS["conversation"])
    if name:
        turns = as_turns(value)
        if not isinstance(turns, list):
            raise SampleError("messages", f"{name} is {shown(value)}, expected a list of turns")
        turns = take_history(fields) + turns
        return name, {}, read_turns(turns, name, folder)
    if "parts" in fields:
        return "parts", {"parts": _take_parts(fields, media, folder)}, None
    if "regions" in fields:
        regions = fields.take("regions")
        if isinstance(regions, list):
            regions = [_own(item, "regions.", _REGION_NAMES, media) for item in regions]
        return "regions", {"regions": regions}, None
    question = take_question(fields)
    if question is not None:
        return take_answer(fields, question, media, folder)
    name, caption = fields.take_one(SPELLINGS["caption"])
    if name:
        if fields.look("text") == caption:
            fields.take("text")
        return name, {"caption": caption}, None
    if "text" in fields:
        text = fields.take("text")
        is_caption = media.pictures or media.video is not None
        name = "caption" if is_caption and not has_kind else "text"
        return "text", {name: text}, None
    return None


def _own(item: Any, place: str, known: set[str], media: Media) -> Any:
    """An object of our own lists without what is not ours."""
    if not isinstance(item, dict):
        return item
    others = Fields({name: v for name, v in item.items() if name not in known}, place)
    others.refuse()
    media.unused += others.leave(f"the others of {place[:-1]}")
    return {name: item[name] for name in item if name in known}


def _take_parts(fields: Fields, media: Media, folder: FileFolder | None) -> Any:
    """The parts of a document; images may be named in them, and stand in any order."""
    parts = fields.take("parts")
    if not isinstance(parts, list):
        return parts
    result: list[Any] = []
    places: list[Place] = []
    for part in parts:
        part = _own(part, "parts.", {"type", "text", "image"}, media)
        if not isinstance(part, dict) or is_nothing(part.get("image")):
            if isinstance(part, dict):
                refuse_marks(part.get("text"), "parts")
                part = {name: part[name] for name in part if name == "text"}
            result.append(part)
            continue
        image = part["image"]
        if isinstance(image, int) and not isinstance(image, bool):
            places.append(Index(image))
        else:
            places += read_pictures(image, "parts.image", folder, "image", media.unused)
        result.append({"image": len(places) - 1})
    media.pictures = in_order_of_marks(media, places)
    return result


def _add_system(fields: Fields, conversation: Conversation, main: str) -> None:
    """The system turn, with the tools that may be called."""
    messages = conversation.messages
    name, system = fields.take_one(SPELLINGS["system text"])
    if system is not None and not isinstance(system, str):
        raise SampleError("text", f"{name} is {shown(system)}, expected text")
    has_turn = bool(messages) and messages[0]["role"] == "system"
    if has_turn and system is not None and messages[0]["content"] != system:
        raise SampleError("fields", f"{name} beside a system turn in {main}; keep one")
    if has_turn:
        system = messages[0]["content"]
    tools_name, tools = fields.take_one(SPELLINGS["tools"])
    if tools is not None:
        system = describe_tools(tools, tools_name, system or "")
    if system is None:
        return
    refuse_marks(system, "the system text")
    if has_turn:
        messages[0]["content"] = system
    else:
        messages.insert(0, {"role": "system", "content": system})


def _refuse_marks(content: dict[str, Any], folder: FileFolder | None) -> None:
    """Texts that have no place for images, but for our own marks, which kinds.py refuses."""
    for name, value in content.items():
        for item in value if isinstance(value, list) else [value]:
            text = item.get("text") if isinstance(item, dict) else item
            refuse_marks(text, name)
            if isinstance(text, str):
                refuse_named_files(text, name, folder)
