"""The text of samples in the shapes that data comes in, as the fields that kinds.py reads."""

from __future__ import annotations

from typing import Any

from nvlm.data.sample import IMAGE_MARK, SampleError
from nvlm.data.text_members import VIDEO_MARK, shown

_CONVERSATIONS = ("messages", "conversations", "conversation", "texts")
_QUESTIONS = ("question", "query")
_ANSWERS = ("answers", "answer", "label")
_CAPTIONS = ("caption", "captions")
# All that `normalise` takes text from.
TEXT_FIELDS = (
    *(*_CONVERSATIONS, *_QUESTIONS, *_ANSWERS, *_CAPTIONS),
    *("text", "parts", "regions", "choices"),
)
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant"}
# Fields of kinds.py that are taken over as they are.
_OWN_FIELDS = ("kind", "task", "parts", "regions", "choices", "correct", "answer_weights")


def normalise(value: dict[str, Any], num_images: int, has_video: bool = False) -> dict[str, Any]:
    """The JSON to store for a sample with `num_images` images.

    Of conversations (`messages`, LLaVA's `conversations`, the Cauldron's `texts`) without a mark
    for their images, the first user turn gets the marks, as LLaVA does.

    Raises:
        SampleError: none of the known fields is there.
    """
    result = {name: value[name] for name in _OWN_FIELDS if value.get(name) is not None}
    if value.get("id") is not None:
        result["id"] = value["id"] if isinstance(value["id"], int) else str(value["id"])
    for name in _CONVERSATIONS:
        if isinstance(value.get(name), list):
            messages = _messages(value[name])
            _add_marks(messages, num_images, has_video)
            return result | {"messages": messages}
    if "parts" in result or "regions" in result:
        return result
    question = _first(value, *_QUESTIONS)
    if question is not None:
        answers = _first(value, *_ANSWERS)
        if "choices" in result:
            return result | {"question": question}
        return result | {"question": question, "answers": _as_list(answers)}
    caption = _first(value, *_CAPTIONS)
    text = value.get("text")
    if caption is None and num_images and "kind" not in result:
        caption = text  # as in Hugging Face's image folders
    if caption is not None:
        return result | {"caption": caption}
    if text is not None:
        return result | {"text": text}
    for name in _CONVERSATIONS:
        if value.get(name) is not None:
            raise SampleError("messages", f"{name} is {shown(value[name])}, expected a list")
    found = ", ".join(map(str, list(value)[:8])) or "nothing"
    raise SampleError("fields", f"no conversation, caption, question or text; it has {found}")


def _messages(turns: list[Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for position, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise SampleError("messages", f"turn {position} is no object")
        if "user" in turn and "assistant" in turn:
            messages.append({"role": "user", "content": turn["user"]})
            messages.append({"role": "assistant", "content": turn["assistant"]})
            continue
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        messages.append({"role": role, "content": _text(content, position)})
    return messages


def _text(content: Any, position: int) -> Any:
    """Content in typed parts, as chat interfaces have it, as one text with marks."""
    if not isinstance(content, list):
        return content
    text = ""
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text") or "", str):
            text += part.get("text") or ""
        elif kind in ("image", "image_url"):
            text += f"{IMAGE_MARK}\n"
        elif kind == "video":
            text += f"{VIDEO_MARK}\n"
        else:
            raise SampleError("messages", f"turn {position} has the part {shown(part)}")
    return text


def _add_marks(messages: list[dict[str, Any]], num_images: int, has_video: bool) -> None:
    texts = [m["content"] for m in messages if isinstance(m["content"], str)]
    marks = ""
    if num_images and not any(IMAGE_MARK in text for text in texts):
        marks = f"{IMAGE_MARK}\n" * num_images
    if has_video and not any(VIDEO_MARK in text for text in texts):
        if num_images == 0 and sum(text.count(IMAGE_MARK) for text in texts) == 1:
            # LLaVA's video data marks videos as images.
            for message in messages:
                message["content"] = message["content"].replace(IMAGE_MARK, VIDEO_MARK)
        else:
            marks += f"{VIDEO_MARK}\n"
    for message in messages:
        if message["role"] == "user" and isinstance(message["content"], str):
            message["content"] = marks + message["content"]
            return


def _first(value: dict[str, Any], *names: str) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _as_list(value: Any) -> list[Any]:
    """Answers as texts; VQAv2's are objects `{"answer": TEXT, ...}`."""
    values = value if isinstance(value, list) else [value]
    return [v["answer"] if isinstance(v, dict) and "answer" in v else v for v in values]
