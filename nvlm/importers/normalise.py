"""A sample of a source, in any of the shapes that data comes in, as the sample to store.

Every field is used, or makes the sample be refused by a message that names it, or is listed. A
field that decides what is trained is never only listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvlm.data.samples.kinds import KINDS
from nvlm.data.samples.prompts import fill, load_prompt_pools
from nvlm.data.samples.sample import IMAGE_MARK, SampleError
from nvlm.data.samples.text_members import VIDEO_MARK, shown
from nvlm.importers.fields import Fields, is_nothing
from nvlm.importers.image_files import FileFolder
from nvlm.importers.marks import Number, read_marks, refuse_marks
from nvlm.importers.media import (
    Media,
    Picture,
    check_unread,
    read_pictures,
    refuse_named_files,
    take_media,
)
from nvlm.importers.options import option_columns, right_option, take_options
from nvlm.importers.spellings import ID_FIELDS, SPELLINGS
from nvlm.importers.tools import describe_tools
from nvlm.importers.turns import Conversation, Index, Place, as_turns, read_turns

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
    pictures = _order(media, places)
    clip = _one_video(media, conversation)
    if clip is None:
        check_unread(fields, folder, pictures)
    unused = media.unused + (conversation.unused if conversation else []) + fields.leave(main)
    if conversation is not None:
        if pictures and clip is not None:
            raise SampleError("video", "a video beside images; expected one alone")
        _add_marks(conversation.messages, len(pictures), clip is not None)
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


# (the field that the sample is made of, its content, or its conversation)
_Found = tuple[str, dict[str, Any], Conversation | None]


def _take_content(
    fields: Fields, media: Media, folder: FileFolder | None, has_kind: bool
) -> _Found | None:
    name, value = fields.take_one(SPELLINGS["conversation"])
    if name:
        turns = as_turns(value)
        if not isinstance(turns, list):
            raise SampleError("messages", f"{name} is {shown(value)}, expected a list of turns")
        turns = _take_history(fields) + turns
        return name, {}, read_turns(turns, name, folder)
    if "parts" in fields:
        return "parts", {"parts": _take_parts(fields, media, folder)}, None
    if "regions" in fields:
        regions = fields.take("regions")
        if isinstance(regions, list):
            regions = [_own(item, "regions.", _REGION_NAMES, media) for item in regions]
        return "regions", {"regions": regions}, None
    question = _take_question(fields)
    if question is not None:
        return _take_answer(fields, question, media, folder)
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
    media.pictures = _order(media, places)
    return result


def _take_question(fields: Fields) -> Any:
    name, question = fields.take_one(SPELLINGS["question"])
    extra = None
    if "input" in fields and name in ("", "instruction", "prompt"):
        extra = fields.take("input")
    if question is None:
        question, extra = extra, None
    if question is None:
        return None
    if extra is not None:
        question = _joined(question, extra, name or "input", "input")
    for context in reversed(fields.found(SPELLINGS["context of a question"])):
        question = _joined(fields.take(context), question, context, name or "input")
    return question


def _joined(first: Any, second: Any, first_name: str, second_name: str) -> str:
    for name, text in ((first_name, first), (second_name, second)):
        if not isinstance(text, str):
            raise SampleError("text", f"{name} is {shown(text)}, expected text")
    return f"{first}\n{second}"


def _take_history(fields: Fields) -> list[Any]:
    """Earlier turns: `[[question, answer], ...]`, or turns."""
    if "history" not in fields:
        return []
    history = as_turns(fields.take("history"))
    if not isinstance(history, list):
        raise SampleError("messages", f"history is {shown(history)}, expected pairs of texts")
    turns: list[Any] = []
    for item in history:
        if isinstance(item, list) and len(item) == 2:
            turns += [{"role": "user", "content": item[0]}]
            turns += [{"role": "assistant", "content": item[1]}]
        elif isinstance(item, dict):
            turns.append(item)
        else:
            raise SampleError("messages", f"history has {shown(item)}, expected pairs of texts")
    return turns


def _take_answer(fields: Fields, question: Any, media: Media, folder: FileFolder | None) -> _Found:
    """A question with what answers it: a vqa, a multiple_choice, or a conversation."""
    is_chat = isinstance(question, list)
    options_name, options, labels = ("", [], []) if is_chat else take_options(fields)
    if options:
        correct = right_option(fields, options_name, options, labels)
        if "solution" in fields:  # says why
            media.unused.append(fields.name("solution"))
            fields.take("solution")
        content = {"question": question, "choices": options, "correct": correct}
        if not _needs_turns(fields, [question, *options]):
            return "question", _without_leading_marks(content, media), None
        lines = "\n".join(f"{chr(65 + i)}. {text}" for i, text in enumerate(options))
        prompt = load_prompt_pools(None)["multiple_choice"][0]
        question = fill(prompt, {"question": str(question), "choices": lines})
        answer: Any = chr(65 + correct)
    else:
        name, answers = _take_answers(fields)
        if not is_chat and not _needs_turns(fields, [question]):
            content = {"question": question, "answers": _answer_texts(answers, name, media)}
            if "answer_weights" in fields:
                content["answer_weights"] = fields.take("answer_weights")
            return "question", _without_leading_marks(content, media), None
        answer = answers
        if isinstance(answers, list) and not is_chat:
            if len(answers) != 1:
                raise SampleError(
                    "fields",
                    f"{name} has {len(answers)} answers, which do not go with turns before the "
                    "question or marks in it; keep one",
                )
            answer = _answer_texts(answers, name, media)[0]
    asked = question if is_chat else [{"role": "user", "content": question}]
    said = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    turns = [*_take_history(fields), *asked, *said]
    return "question", {}, read_turns(turns, "question", folder)


def _needs_turns(fields: Fields, texts: list[Any]) -> bool:
    """Whether a question is to be stored as a conversation: it does not stand alone."""
    if fields.found(("history", *SPELLINGS["tools"])):
        return True
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            continue
        written, images = read_marks(text, "question")
        if VIDEO_MARK in written or any(image is not None for image in images):
            return True
        rest = written.lstrip().removeprefix(IMAGE_MARK)
        while rest.lstrip().startswith(IMAGE_MARK):
            rest = rest.lstrip().removeprefix(IMAGE_MARK)
        if IMAGE_MARK in rest or (number and images):
            return True
    return False


def _without_leading_marks(content: dict[str, Any], media: Media) -> dict[str, Any]:
    """Marks before a question say what is so anyway: images come first."""
    question = content["question"]
    if not isinstance(question, str):
        return content
    question, images = read_marks(question, "question")
    if images:
        if len(images) != len(media.pictures):
            raise SampleError(
                "image_count",
                f"{len(images)} marks in the question for {len(media.pictures)} images",
            )
        question = question.replace(IMAGE_MARK, "").strip()
    return content | {"question": question}


def _take_answers(fields: Fields) -> tuple[str, Any]:
    """The one field with answers; others must say the same, or be one of several answers."""
    found = fields.found(SPELLINGS["answer"])
    if not found:
        raise SampleError("fields", f"a question without an answer; it has {fields.describe()}")
    main = found[0]
    name, value = fields.name(main), fields.take(main)
    many = value if isinstance(value, list) else [value]
    for other in found[1:]:
        if fields.look(other) == value or fields.look(other) in [_answer_of(item) for item in many]:
            fields.take(other)
    return name, value


def _answer_of(item: Any) -> Any:
    return item.get("answer", item.get("text")) if isinstance(item, dict) else item


def _answer_texts(value: Any, name: str, media: Media) -> list[Any]:
    """Answers as texts; VQAv2's are objects `{"answer": TEXT, ...}`, SQuAD's one with lists."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        media.unused += [f"{name}.{other}" for other in value if other != "text"]
        return value["text"]
    texts = []
    unused: dict[str, None] = {}
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and ("answer" in item or "text" in item):
            own = Fields(item, f"{name}.")
            own.refuse()
            text = own.take_one(("answer", "text"))[1]
            unused |= dict.fromkeys(own.leave(f"the answers in {name}"))
            texts.append(text)
        else:
            texts.append(item)
    media.unused += unused
    return texts


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


def _order(media: Media, places: list[Place]) -> list[Picture]:
    """The images in the order of their marks."""
    own = [place for place in places if isinstance(place, Picture)]
    asked = [place for place in places if isinstance(place, (Index, Number))]
    if not own and not asked:
        _check_numbers(media)
        return media.pictures
    if len(own) not in (0, len(places)) or len(asked) not in (0, len(places)):
        raise SampleError(
            "image_count", "some marks say which image they stand for, and others do not"
        )
    if own:
        if media.pictures and sorted(map(_identity, own)) != sorted(map(_identity, media.pictures)):
            raise SampleError(
                "image_count", "the sample names other images than its turns do; keep one of them"
            )
        return own
    wanted = [_place_of(place, asked, media) for place in asked]
    if sorted(wanted) != list(range(len(media.pictures))):
        raise SampleError(
            "image_count",
            f"marks ask for images {', '.join(map(str, map(_shown_place, asked)))} of "
            f"{len(media.pictures)}; each image is asked for once",
        )
    return [media.pictures[place] for place in wanted]


def _check_numbers(media: Media) -> None:
    numbers = media.numbers
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise SampleError(
            "image_count", f"images are numbered {', '.join(map(str, numbers))}: one is left out"
        )


def _identity(picture: Picture) -> tuple[str, bytes]:
    return str(picture.path), picture.data or b""


def _shown_place(place: Index | Number) -> int:
    return place.index if isinstance(place, Index) else place.number


def _place_of(place: Index | Number, asked: list[Any], media: Media) -> int:
    """Where in the list of images a mark's image is, from 0; -1: nowhere."""
    if isinstance(place, Index):
        return place.index
    numbers = media.numbers
    if numbers is None:
        first = min(p.number for p in asked if isinstance(p, Number))
        numbers = list(range(min(first, 1), min(first, 1) + len(media.pictures)))
    return numbers.index(place.number) if place.number in numbers else -1


def _one_video(media: Media, conversation: Conversation | None) -> Picture | None:
    videos = conversation.videos if conversation is not None else []
    if media.video is not None and videos and _identity(media.video) == _identity(videos[0]):
        videos = videos[1:]
    found = [video for video in (media.video, *videos) if video is not None]
    if len(found) > 1:
        raise SampleError("video", f"{len(found)} videos; expected one alone")
    return found[0] if found else None


def _add_marks(messages: list[dict[str, Any]], num_images: int, has_video: bool) -> None:
    texts = [m["content"] for m in messages if isinstance(m["content"], str)]
    marks = ""
    if num_images and not any(IMAGE_MARK in text for text in texts):
        if any("<img>" in text.lower() for text in texts):
            raise SampleError("image_mark", "the mark <img> is not known; write <image>")
        marks = f"{IMAGE_MARK}\n" * num_images
    if has_video and not any(VIDEO_MARK in text for text in texts):
        if num_images == 0 and sum(text.count(IMAGE_MARK) for text in texts) == 1:
            # LLaVA's video data marks videos as images.
            for message in messages:
                if isinstance(message["content"], str):
                    message["content"] = message["content"].replace(IMAGE_MARK, VIDEO_MARK)
        else:
            marks += f"{VIDEO_MARK}\n"
    for message in messages:
        if message["role"] == "user" and isinstance(message["content"], str):
            message["content"] = marks + message["content"]
            return
