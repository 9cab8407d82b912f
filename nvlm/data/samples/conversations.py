"""Conversations and documents: samples whose text is used as it is stored."""

from __future__ import annotations

import re
from typing import Any

from nvlm.data.samples.sample import IMAGE_MARK, Messages, SampleError
from nvlm.data.samples.text_members import VIDEO_MARK, checked_text, shown

ROLES = ("system", "user", "assistant")
_LLAVA_ROLES = {"human": "user", "gpt": "assistant"}
_ANSWERS = ("assistant", "gpt")
# Of a turn: fields that would change what is trained.
_NOT_READ = {
    "tool_calls", "function_call", "loss_mask", "loss", "train", "trained", "image", "images",
    "reasoning_content",
}  # fmt: skip
_PARAGRAPH_END = re.compile(r"(?<=\n\n)(?=[^\n])")


def read_conversation(
    value: dict[str, Any], num_images: int, num_frames: int, system: str = ""
) -> Messages:
    name = "messages" if "messages" in value else "conversations"
    items = value.get(name)
    if not isinstance(items, list) or not items:
        raise SampleError("messages", f"{name} is {shown(items)}, expected a list of turns")
    messages = [_read_message(position, item) for position, item in enumerate(items)]
    if system:
        if messages[0]["role"] == "system":
            raise SampleError("role_order", "a field system beside a system turn; keep one")
        messages.insert(0, {"role": "system", "content": system})
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise SampleError(
            "role_order", f"roles {shown(' '.join(roles))}, expected user and assistant by turns"
        )
    if num_frames:
        _place_frames(messages, num_frames)
    elif any(VIDEO_MARK in message["content"] for message in messages):
        raise SampleError("image_count", f"the mark {VIDEO_MARK}, but no video")
    num_marks = count_image_marks(messages)
    if num_marks != num_images:
        raise SampleError(
            "image_count", f"{num_marks} {IMAGE_MARK} marks in user turns for {num_images} images"
        )
    return messages


_NONE: frozenset[int] = frozenset()


def read_untrained_turns(value: dict[str, Any]) -> frozenset[int]:
    """The turns of a conversation whose answers have `"weight": 0`, numbered from 0.

    Raises:
        SampleError: a weight is neither 0 nor 1, stands beside what is never trained, or all are 0.
    """
    items = value["messages" if "messages" in value else "conversations"]
    if max(map(len, items)) == 2 or not any("weight" in item for item in items):
        return _NONE
    weights = []
    for position, item in enumerate(items):
        weight = item.get("weight")
        is_answer = item.get("role", item.get("from")) in _ANSWERS
        allowed = (None, 0, 1) if is_answer else (None, 0)
        if isinstance(weight, bool) or weight not in allowed:
            expected = "0 or 1" if is_answer else "none or 0: only assistant turns are trained"
            raise SampleError(
                "fields", f"message {position} has weight {shown(weight)}, expected {expected}"
            )
        if is_answer:
            weights.append(weight)
    untrained = frozenset(turn for turn, weight in enumerate(weights) if weight == 0)
    if len(untrained) == len(weights):
        raise SampleError("untrained", "every answer has weight 0, so nothing of it is trained")
    return untrained


def _read_message(position: int, item: Any) -> dict[str, str]:
    if not isinstance(item, dict):
        raise SampleError("messages", f"message {position} is {shown(item)}, expected an object")
    if len(item) > 2 and not _NOT_READ.isdisjoint(item):
        name = next(name for name in item if name in _NOT_READ)
        raise SampleError(
            "messages", f"message {position} has {name}, which is not read in shards and would "
            "change what is trained; `nvlm data import` takes it over or says why not"
        )  # fmt: skip
    role, content = item.get("role"), item.get("content")
    if "from" in item:
        role, content = item["from"], item.get("value")
        role = _LLAVA_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise SampleError(
            "messages", f"message {position} has role {shown(role)}, expected {', '.join(ROLES)}"
        )
    content = checked_text(content, f"message {position} ({role})")
    if role != "user" and (IMAGE_MARK in content or VIDEO_MARK in content):
        raise SampleError(
            "image_mark", f"message {position} ({role}) has the mark of an image or a video; only "
            "user turns may"
        )  # fmt: skip
    return {"role": role, "content": content}


def _place_frames(messages: Messages, num_frames: int) -> None:
    num_marks = sum(message["content"].count(VIDEO_MARK) for message in messages)
    if num_marks != 1:
        raise SampleError("image_count", f"{num_marks} {VIDEO_MARK} marks for one video")
    frames = "\n".join([IMAGE_MARK] * num_frames)
    for message in messages:
        message["content"] = message["content"].replace(VIDEO_MARK, frames)


def read_document(value: dict[str, Any], kind: str, num_images: int) -> Messages:
    """Parts that a document may end after: the images before a paragraph, and it."""
    if kind == "text":
        parts: Any = [{"text": value.get("text")}]
    else:
        parts = value.get("parts")
    if not isinstance(parts, list):
        raise SampleError("fields", f"parts is {shown(parts)}, expected a list")
    documents: list[str] = []
    images = ""
    next_image = 0
    for number, part in enumerate(parts):
        if isinstance(part, dict) and "image" in part:
            if part["image"] != next_image or isinstance(part["image"], bool):
                raise SampleError(
                    "image_count", f"part {number} is image {shown(part['image'])}, expected "
                    f"{next_image}: images come in the order of their members"
                )  # fmt: skip
            next_image += 1
            images += IMAGE_MARK
            continue
        if not isinstance(part, dict) or "text" not in part:
            raise SampleError("fields", f"part {number} is {shown(part)}, expected text or image")
        text = checked_text(part["text"], f"part {number}")
        if IMAGE_MARK in text or VIDEO_MARK in text:
            raise SampleError("image_mark", f"part {number} has the mark of an image in its text")
        first, *others = _PARAGRAPH_END.split(text)
        documents += [images + first, *others]
        images = ""
    if not documents:
        raise SampleError("text", "a document without text, so nothing to train on")
    documents[-1] += images
    if next_image != num_images:
        raise SampleError("image_count", f"its parts use {next_image} of {num_images} images")
    return [{"role": "document", "content": content} for content in documents]


def count_image_marks(messages: Messages) -> int:
    return sum(m["content"].count(IMAGE_MARK) for m in messages if m["role"] != "assistant")


def begins_with_image(messages: Messages) -> bool:
    """Whether the first question has an image, or a document begins with one."""
    for message in messages:
        if message["role"] == "document":
            return message["content"].startswith(IMAGE_MARK)
        if message["role"] == "user":
            return IMAGE_MARK in message["content"]
    return False


def keep_turns(messages: Messages, num_turns: int) -> Messages:
    """The first `num_turns` turns: up to that many answers, or parts of a document."""
    if messages[0]["role"] == "document":
        return messages[:num_turns]
    first = 1 if messages[0]["role"] == "system" else 0
    return messages[: first + 2 * num_turns]
