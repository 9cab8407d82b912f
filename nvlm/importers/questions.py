"""A question and what answers it, out of the fields of a sample."""

from __future__ import annotations

from typing import Any

from nvlm.data.samples.prompts import fill, load_prompt_pools
from nvlm.data.samples.sample import IMAGE_MARK, SampleError
from nvlm.data.samples.text_members import VIDEO_MARK, shown
from nvlm.importers.fields import Fields
from nvlm.importers.image_files import FileFolder
from nvlm.importers.marks import read_marks
from nvlm.importers.media import Media
from nvlm.importers.options import right_option, take_options
from nvlm.importers.spellings import SPELLINGS
from nvlm.importers.turns import Conversation, as_turns, read_turns

# (the field that the sample is made of, its content, or its conversation)
Found = tuple[str, dict[str, Any], Conversation | None]


def take_question(fields: Fields) -> Any:
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


def take_history(fields: Fields) -> list[Any]:
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


def take_answer(fields: Fields, question: Any, media: Media, folder: FileFolder | None) -> Found:
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
    turns = [*take_history(fields), *asked, *said]
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
